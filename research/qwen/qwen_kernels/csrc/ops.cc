// The kernels as MindSpore operators. T tokens, H heads of size D; float32 unless said otherwise.
#include <cstddef>
#include <numeric>

#include "kernels.h"
#include "op.h"

namespace qwen {
namespace {

// Memory between two kernels of one operator. Operators run one after the other.
float *between(int which, size_t floats) {
  static Buffer buffers[6];
  return buffers[which].reserve(floats);
}

// The memory of weights for so many inputs.
Beginning::Piece bytes_of(const Weights &weights, int64_t inputs) {
  return {static_cast<const char *>(weights.weight), weights.outputs * inputs * weights.bits / 8};
}

// Takes an operator's inputs one after the other, from `next` on. `settings` [4] float32: epsilon; of quantised weights
// group_size (not above 0: all inputs) and whether they have zeros; the cache's block_size.
class Inputs {
 public:
  Inputs(const Op &op, const float *settings, int next) : op_(op), settings_(settings), next_(next) {}

  int next() { return next_++; }
  bool is_left() const { return next_ < op_.inputs(); }
  bool is_next(const char *type) const { return is_left() && op_.has_type(next_, type); }
  Norm norm() { return {op_.f32(next_++), settings_[0]}; }

  // weight; of quantised weights also scales, and zeros and order where there are such; then the bias. `width`: its inputs.
  Weights weights(bool has_bias, int64_t width) {
    const int i = next_++;
    Weights found{op_.f32(i), nullptr, op_.dim(i, 0)};
    if (op_.has_type(i, "float16")) found.bits = 16;
    if (op_.has_type(i, "uint8")) {
      found.bits = static_cast<int>(8 * op_.dim(i, 1) / width);
      found.groups = op_.dim(next_, 1);
      found.group_size = settings_[1] > 0 ? static_cast<int64_t>(settings_[1]) : width;
      found.scales = op_.f32(next_++);
      if (settings_[2] != 0) found.zeros = op_.u8(next_++);
      if (is_next("int32")) found.order = op_.i32(next_++);
    }
    if (has_bias) found.bias = op_.f32(next_++);
    return found;
  }

 private:
  const Op &op_;
  const float *settings_;
  int next_;
};

// x [T, hidden], settings; the norm, q, k and v with biases, and o; the norm, w1, w2, w3; rotation [4, T, D / 2]: cos, sin,
// query cos, query sin. What the operators that are a layer have in common.
struct Layer {
  Layer(const Op &op, Inputs &inputs) {
    x = op.f32(0);
    tokens = op.dim(0, 0);
    hidden = op.dim(0, 1);
    attention_norm = inputs.norm();
    for (Weights &projection : qkv) projection = inputs.weights(true, hidden);
    row_size = qkv[0].outputs;
    wo = inputs.weights(false, row_size);
    ffn_norm = inputs.norm();
    w1 = inputs.weights(false, hidden);
    w2 = inputs.weights(false, w1.outputs);
    w3 = inputs.weights(false, hidden);
    const int i = inputs.next();
    const int64_t half = op.dim(i, 2), table = tokens * half;
    rotation = {nullptr, op.f32(i), op.f32(i) + table, op.f32(i) + 2 * table, op.f32(i) + 3 * table,
                row_size / (2 * half), 2 * half};
  }

  // Runs the layer, with attend(thread, rotation, out) between the projections.
  template <typename Attend>
  void run(const Attend &attend, float *out) {
    float *qkv_out = between(0, tokens * 3 * row_size), *attended = between(1, tokens * row_size);
    float *middle = between(2, tokens * hidden), *inner = between(3, tokens * w1.outputs);
    rotation.qkv = qkv_out;
    const Beginning beginning{{bytes_of(qkv[0], hidden), bytes_of(qkv[1], hidden), bytes_of(qkv[2], hidden)}};
    Pool::get().run([&](Thread &thread) {
      linears(thread, x, tokens, hidden, attention_norm, {qkv[0], qkv[1], qkv[2]}, nullptr, qkv_out);
      attend(thread, rotation, attended);
      linears(thread, attended, tokens, row_size, {}, {wo}, x, middle);
      swiglu(thread, middle, tokens, hidden, ffn_norm, w1, w3, inner);
      linears(thread, inner, tokens, w1.outputs, {}, {w2}, middle, out);
    }, beginning);
  }

  const float *x;
  int64_t tokens, hidden, row_size;
  Norm attention_norm, ffn_norm;
  Weights qkv[3], wo, w1, w2, w3;
  Rotation rotation;
};

}  // namespace

// x [T, hidden], settings, norm weight [hidden] -> [T, hidden]
QWEN_OP(QwenRmsNorm, {
  const Norm norm = Inputs(op, op.f32(1), 2).norm();
  Pool::get().run([&](Thread &thread) { rms_norm(thread, op.f32(0), op.dim(0, 0), op.dim(0, 1), norm, op.out()); });
})
QWEN_SHAPE(QwenRmsNorm, {shapes[0][0], shapes[0][1]})

// x [T, in], settings, weights, and perhaps a bias -> [T, out]
QWEN_OP(QwenLinear, {
  Inputs inputs(op, op.f32(1), 2);
  Weights weights = inputs.weights(false, op.dim(0, 1));
  if (inputs.is_left()) weights.bias = op.f32(inputs.next());
  Pool::get().run([&](Thread &thread) {
    linears(thread, op.f32(0), op.dim(0, 0), op.dim(0, 1), {}, {weights}, nullptr, op.out());
  }, {{bytes_of(weights, op.dim(0, 1))}});
})
QWEN_SHAPE(QwenLinear, {shapes[0][0], shapes[2][0]})

// See Layer; then key and value cache [slots, H * D] (written in place), and of a cache in uint8 their scales and zeros
// [slots, 2 * H]; slot_mapping [T] int32, block_tables [B, blocks] int32, sequences [2, B] int32: lengths, queries (how
// many of the T tokens are each sequence's); or [B]: lengths alone, one token each -> [T, hidden]
QWEN_OP(QwenLayer, {
  Inputs inputs(op, op.f32(1), 2);
  Layer layer(op, inputs);
  Half keys{op.mutable_f32(inputs.next()), nullptr}, values{op.mutable_f32(inputs.next()), nullptr};
  if (inputs.is_next("float32")) {
    keys.scales = op.mutable_f32(inputs.next());
    values.scales = op.mutable_f32(inputs.next());
  }
  const int slots = inputs.next(), tables = inputs.next();
  const int64_t batch = op.dim(tables, 0);
  const int sequences = inputs.next();
  const std::vector<int32_t> one_each(batch, 1);
  const int32_t *lengths = op.i32(sequences), *queries = op.axes(sequences) == 2 ? lengths + batch : one_each.data();
  const Cache cache{keys, values, op.i32(tables), op.dim(tables, 1), static_cast<int64_t>(op.f32(1)[3])};
  layer.run([&](Thread &thread, const Rotation &rotation, float *out) {
    attend(thread, rotation, cache, op.i32(slots), lengths, queries, batch, layer.tokens, out);
  }, op.out());
})
QWEN_SHAPE(QwenLayer, {shapes[0][0], shapes[0][1]})

// See Layer, with T = B * S; then input_ids [B, S] (for its shape) -> [T, hidden]
QWEN_OP(QwenLayerWhole, {
  Inputs inputs(op, op.f32(1), 2);
  Layer layer(op, inputs);
  const int64_t batch = op.dim(inputs.next(), 0);
  const int64_t floats = layer.tokens * layer.row_size;
  const Cache cache{{between(4, floats), nullptr}, {between(5, floats), nullptr}, nullptr, 0, 0};
  std::vector<int32_t> slots(layer.tokens);
  std::iota(slots.begin(), slots.end(), 0);
  const std::vector<int32_t> lengths(batch, layer.tokens / batch);
  layer.run([&](Thread &thread, const Rotation &rotation, float *out) {
    attend(thread, rotation, cache, slots.data(), lengths.data(), lengths.data(), batch, layer.tokens, out);
  }, op.out());
})
QWEN_SHAPE(QwenLayerWhole, {shapes[0][0], shapes[0][1]})

}  // namespace qwen
