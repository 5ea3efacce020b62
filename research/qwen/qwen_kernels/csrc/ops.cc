// The kernels as MindSpore operators. T tokens, H heads of size D; float32 unless said otherwise.
#include <cstddef>
#include <numeric>

#include "kernels.h"
#include "op.h"

namespace qwen {
namespace {

// A buffer between two kernels of one operator. Operators run one after the other.
float *buffer(int which, size_t floats) {
  static std::vector<float> memory[4];
  if (memory[which].size() < floats) memory[which].resize(floats);
  return memory[which].data();
}

Weights weights(const Op &op, int i, bool has_bias) {
  return {op.f32(i), has_bias ? op.f32(i + 1) : nullptr, op.dim(i, 0)};
}

Norm norm(const Op &op, int i) { return {op.f32(i), *op.f32(i + 1)}; }

// x, norm weight, epsilon, wq, bq, wk, bk, wv, bv, wo, cos, sin, query cos, query sin: what attention operators share.
Rotation project(const Op &op) {
  const int64_t tokens = op.dim(0, 0), row_size = op.dim(3, 0), size = 2 * op.dim(10, 1);
  float *qkv = buffer(0, tokens * 3 * row_size);
  linears(op.f32(0), tokens, op.dim(0, 1), norm(op, 1), {weights(op, 3, true), weights(op, 5, true),
                                                         weights(op, 7, true)}, nullptr, qkv);
  return {qkv, op.f32(10), op.f32(11), op.f32(12), op.f32(13), row_size / size, size};
}

void project_back(const Op &op, const float *out) {
  linears(out, op.dim(0, 0), op.dim(9, 1), {}, {weights(op, 9, false)}, op.f32(0), op.out());
}

}  // namespace

// x [T, hidden], norm weight [hidden], epsilon [1] -> [T, hidden]
QWEN_OP(QwenRmsNorm, { rms_norm(op.f32(0), op.dim(0, 0), op.dim(0, 1), norm(op, 1), op.out()); })
QWEN_SHAPE(QwenRmsNorm, {shapes[0][0], shapes[0][1]})

// x [T, in], weight [out, in], and perhaps bias [out] -> [T, out]
QWEN_OP(QwenLinear, {
  linears(op.f32(0), op.dim(0, 0), op.dim(0, 1), {}, {weights(op, 1, op.inputs() > 2)}, nullptr, op.out());
})
QWEN_SHAPE(QwenLinear, {shapes[0][0], shapes[1][0]})

// See project; then key and value cache [slots, H * D] (written in place), slot_mapping [T] int32, block_tables
// [B, blocks] int32, lengths [B] int32, queries [B] int32 (how many of the T tokens are each sequence's), block_size
// [1] int32 -> [T, hidden]
QWEN_OP(QwenAttention, {
  const Rotation rotation = project(op);
  const Cache cache{op.mutable_f32(14), op.mutable_f32(15), op.i32(17), op.dim(17, 1), *op.i32(20)};
  float *out = buffer(1, op.dim(0, 0) * op.dim(3, 0));
  attend(rotation, cache, op.i32(16), op.i32(18), op.i32(19), op.dim(17, 0), op.dim(0, 0), out);
  project_back(op, out);
})
QWEN_SHAPE(QwenAttention, {shapes[0][0], shapes[0][1]})

// See project, with T = B * S; then input_ids [B, S] (for its shape) -> [T, hidden]
QWEN_OP(QwenAttentionWhole, {
  const int64_t tokens = op.dim(0, 0), row_size = op.dim(3, 0), batch = op.dim(14, 0);
  const Rotation rotation = project(op);
  const Cache cache{buffer(2, tokens * row_size), buffer(3, tokens * row_size), nullptr, 0, 0};
  std::vector<int32_t> slots(tokens);
  std::iota(slots.begin(), slots.end(), 0);
  const std::vector<int32_t> lengths(batch, tokens / batch);
  float *out = buffer(1, tokens * row_size);
  attend(rotation, cache, slots.data(), lengths.data(), lengths.data(), batch, tokens, out);
  project_back(op, out);
})
QWEN_SHAPE(QwenAttentionWhole, {shapes[0][0], shapes[0][1]})

// x [T, hidden], norm weight, epsilon, w1 [width, hidden], w2 [hidden, width], w3 [width, hidden] -> [T, hidden]
QWEN_OP(QwenFeedForward, {
  const int64_t tokens = op.dim(0, 0), width = op.dim(3, 0);
  float *inner = buffer(0, tokens * width);
  swiglu(op.f32(0), tokens, op.dim(0, 1), norm(op, 1), weights(op, 3, false), weights(op, 5, false), inner);
  linears(inner, tokens, width, {}, {weights(op, 4, false)}, op.f32(0), op.out());
})
QWEN_SHAPE(QwenFeedForward, {shapes[0][0], shapes[0][1]})

}  // namespace qwen
