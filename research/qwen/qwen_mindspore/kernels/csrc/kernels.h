// The kernels, which ops.cc makes MindSpore operators of. All arrays are float32, row by row. A kernel is called by all
// threads of a region together, and is complete when they return from it.
#pragma once

#include <cstdint>
#include <vector>

#include "parallel.h"

namespace qwen {

// What a weight is: Kind of weights.py, whose numbers the compiler is given.
enum class Kind : int64_t {
  kFloat32 = QWEN_KIND_FLOAT32,
  kFloat16 = QWEN_KIND_FLOAT16,
  kBfloat16 = QWEN_KIND_BFLOAT16,
  kInt8 = QWEN_KIND_INT8,
  kInt4 = QWEN_KIND_INT4,
};

// weight [outputs, inputs] of numbers; bias [outputs] or null. Of quantized weights (kInt8, kInt4) the weight is levels,
// bytes [outputs, inputs or inputs / 2] as `CpuKernels.prepare_quantized` lays them out; scales and zeros [outputs, groups],
// column k of group k / group_size; null zeros: half of the levels' range; order [inputs] or null: column k is multiplied by
// input order[k].
struct Weights {
  const void *weight;
  const float *bias;
  int64_t outputs;
  Kind kind = Kind::kFloat32;
  const float *scales = nullptr;
  const uint8_t *zeros = nullptr;
  const int32_t *order = nullptr;
  int64_t groups = 0, group_size = 0;
};

// x / rms(x) * weight; a null weight: no norm.
struct Norm {
  const float *weight;
  float epsilon;
};

// x and out [tokens, width].
void rms_norm(Thread &thread, const float *x, int64_t tokens, int64_t width, Norm norm, float *out);

// out [tokens, sum of outputs] = the linears of norm(x) side by side, plus residual of that shape if not null; x
// [tokens, width].
void linears(Thread &thread, const float *x, int64_t tokens, int64_t width, Norm norm,
             const std::vector<Weights> &parts, const float *residual, float *out);

// out [tokens, outputs] = w1(y) * silu(w3(y)), y = norm(x); x [tokens, width].
void swiglu(Thread &thread, const float *x, int64_t tokens, int64_t width, Norm norm, Weights w1, Weights w3,
            float *out);

// q, k and v of each token, data [tokens, 3, heads, size], and what to rotate them by, [tokens, size / 2] each.
struct Qkv {
  const float *data, *cos, *sin, *query_cos, *query_sin;
  int64_t heads, size;
};

// The keys, or the values, of a cache: [slots, heads * size] in float32; or, with scales [slots, 2 * heads] (of each head, then the
// zeros), levels in uint8, for scale * (level - zero).
struct CachePart {
  void *data;
  float *scales;
};

// A slot is a token position or, where there are block tables, a place in a block.
struct Cache {
  CachePart keys, values;
  const int32_t *block_tables;  // [sequences, table_width], or null
  int64_t table_width, block_size;
};

// Writes rotated keys, and values, of all tokens to the slots [tokens] of the cache; then the last
// queries[b] of the lengths[b] tokens of each sequence attend. out [tokens, heads * size].
void attend(Thread &thread, const Qkv &qkv, const Cache &cache, const int32_t *slots, const int32_t *lengths,
            const int32_t *queries, int64_t sequences, int64_t tokens, float *out);

}  // namespace qwen
