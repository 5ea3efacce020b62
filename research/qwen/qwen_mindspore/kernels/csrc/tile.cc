// Float32 weights are [out, in]. One token or a few are dot products, bound by reading the weights; more tokens are put
// side by side in the lanes of vectors, so that a weight is read once and multiplies them all. Quantized weights become
// floats in registers for dot products, and in a core's cache for more tokens: both are exact but for float32 rounding.
#include "tile.h"

#include <algorithm>
#include <type_traits>

namespace qwen {
namespace {

constexpr int kPrefetch = 2048;  // floats to fetch ahead of a dot product
constexpr int kPrefetchBytes = 4096;
constexpr int kAhead = 16;       // inputs of tokens in lanes to fetch ahead
constexpr int kLine = kLineBytes / sizeof(float);
constexpr int kBlock = 32;       // levels that are unpacked at once

// Row by row, so that a weight is read from end to end: memory is what bounds this.
template <int M>
inline __attribute__((always_inline)) void dot_tile(const float *const *rows, const Input &in, Tile &out) {
  constexpr int kUnroll = M == 1 ? 4 : 2;
  for (int r = 0; r < kRows; ++r) store(out[r], vec{});
  for (int r = 0; r < kRows; ++r) {
    const float *w = rows[r];
    vec acc[kUnroll][M] = {};
    int64_t k = 0;
    for (; k + kUnroll * kLanes <= in.inputs; k += kUnroll * kLanes) {
      for (int u = 0; u < kUnroll; ++u) {
        const vec wide = load(w + k + u * kLanes);
        for (int m = 0; m < M; ++m) acc[u][m] += wide * load(in.x + m * in.inputs + k + u * kLanes);
        __builtin_prefetch(w + k + u * kLanes + kPrefetch, 0, 2);
        asm volatile("" ::: "memory");  // rows are read and fetched in order: out of it, decoding takes 15 % longer
      }
    }
    for (int m = 0; m < M; ++m) {
      for (int u = 1; u < kUnroll; ++u) acc[0][m] += acc[u][m];
      out[r][m] = sum(acc[0][m]) + dot(w + k, in.x + m * in.inputs + k, in.inputs - k);
    }
  }
}

// Tokens in the lanes of V vectors. The next tile's rows are fetched ahead, `next` floats away; 0: there is nothing to.
template <int V>
void lane_tile(const float *const *rows, const float *x, const Input &in, int64_t next, Tile &out) {
  vec acc[kRows][V] = {};
  for (int64_t line = 0; line < in.inputs; line += kLine) {
    for (int r = 0; r < kRows && next; ++r) __builtin_prefetch(rows[r] + line + next, 0, 2);
    for (int64_t k = line; k < std::min(line + kLine, in.inputs); ++k, x += in.lanes) {
      vec token[V];
      for (int v = 0; v < V; ++v) {
        token[v] = load(x + v * kLanes);
        __builtin_prefetch(x + v * kLanes + kAhead * in.lanes, 0, 3);
      }
      for (int r = 0; r < kRows; ++r) {
        const float w = rows[r][k];
        for (int v = 0; v < V; ++v) acc[r][v] += token[v] * w;
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < V; ++v) store(out[r] + v * kLanes, acc[r][v]);
  }
}

// kLanes numbers of 16 bits as float32.
template <Kind kKind>
inline vec load_16(const uint16_t *p) {
  return kKind == Kind::kFloat16 ? load_half(p) : load_bfloat16(p);
}

// Weights of 16 bits, row by row. What is left of a row is taken with zeros behind it.
template <Kind kKind, int M>
void dot_16(const uint16_t *const *rows, const Input &in, Tile &out) {
  for (int r = 0; r < kRows; ++r) store(out[r], vec{});
  for (int r = 0; r < kRows; ++r) {
    const uint16_t *w = rows[r];
    vec acc[2][M] = {};
    int64_t k = 0;
    for (; k + 2 * kLanes <= in.inputs; k += 2 * kLanes) {
      __builtin_prefetch(w + k + kPrefetch, 0, 2);
      for (int u = 0; u < 2; ++u) {
        const vec wide = load_16<kKind>(w + k + u * kLanes);
        for (int m = 0; m < M; ++m) acc[u][m] += wide * load(in.x + m * in.inputs + k + u * kLanes);
      }
    }
    for (int m = 0; m < M; ++m) acc[0][m] += acc[1][m];
    for (; k < in.inputs; k += kLanes) {
      const int64_t count = std::min<int64_t>(kLanes, in.inputs - k);
      uint16_t last[kLanes] = {};
      std::memcpy(last, w + k, count * sizeof(uint16_t));
      for (int m = 0; m < M; ++m) {
        vec x{};
        std::memcpy(&x, in.x + m * in.inputs + k, count * sizeof(float));
        acc[0][m] += load_16<kKind>(last) * x;
      }
    }
    for (int m = 0; m < M; ++m) out[r][m] = sum(acc[0][m]);
  }
}

template <Kind kKind>
void to_floats_16(const uint16_t *row, int64_t count, float *out) {
  int64_t k = 0;
  for (; k + kLanes <= count; k += kLanes) store(out + k, load_16<kKind>(row + k));
  uint16_t last[kLanes] = {};
  std::memcpy(last, row + k, (count - k) * sizeof(uint16_t));
  const vec wide = load_16<kKind>(last);
  std::memcpy(out + k, &wide, (count - k) * sizeof(float));
}

template <int V>
void lane_tile_of(const float *const *rows, const float *x, const Input &in, int64_t next, int64_t count, Tile &out) {
  if (V > 1 && count <= (V - 1) * kLanes) return lane_tile_of<std::max(1, V - 1)>(rows, x, in, next, count, out);
  lane_tile<V>(rows, x, in, next, out);
}

// Levels of quantized weights, less half of their range: kBlock of them from `packed` as floats. 8 bits are signed bytes;
// of 4 bits, 16 bytes hold inputs 0 .. 15 in their low halves, and 16 .. 31 in their high ones.
constexpr int kBlockVecs = kBlock / kLanes;

template <int kBits>
inline void unpack(const uint8_t *packed, vec (&levels)[kBlockVecs]) {
  if (kBits == 8) {
    const auto *bytes = reinterpret_cast<const int8_t *>(packed);
    for (int v = 0; v < kBlockVecs; ++v) levels[v] = to_float(load_bytes(bytes + v * kLanes));
    return;
  }
  for (int v = 0; v < kBlockVecs / 2; ++v) {
    const ivec pairs = load_bytes(packed + v * kLanes);
    vec &low = levels[v], &high = levels[v + kBlockVecs / 2];
    if (kLanes == 16) {  // all levels fit a register, from which the low bits of a number choose
      vec all;
      for (int i = 0; i < kLanes; ++i) all[i] = i - 8;
      low = __builtin_shuffle(all, pairs);
      high = __builtin_shuffle(all, pairs >> 4);
    } else {
      low = to_float((pairs & 15) - 8);
      high = to_float((pairs >> 4) - 8);
    }
  }
}

// Level i of those that fill no block: of 4 bits, two a byte, the low half first.
template <int kBits>
inline float level(const uint8_t *packed, int64_t i) {
  return kBits == 8 ? static_cast<int8_t>(packed[i]) : (packed[i / 2] >> (i % 2 * 4) & 15) - 8;
}

// A row of quantized weights; no zeros: they are half of the range.
template <int kBits>
struct Row {
  Row(const Weights &weights, int64_t row, int64_t inputs)
      : levels(static_cast<const uint8_t *>(weights.weight) + row * (inputs * kBits / 8)),
        scales(weights.scales + row * weights.groups),
        zeros(weights.zeros ? weights.zeros + row * weights.groups : nullptr) {}

  const uint8_t *levels;
  const float *scales;
  const uint8_t *zeros;
};

constexpr float half_range(int bits) { return 1 << (bits - 1); }

// What the zeros take off: the sum over groups g of scales[g] * zeros[g] * sums[g].
template <int kBits>
float zero_sum(const Row<kBits> &row, const float *sums, int64_t groups) {
  if (row.zeros == nullptr) return 0;
  vec total{};
  int64_t g = 0;
  for (; g + kLanes <= groups; g += kLanes) {
    total += load(row.scales + g) * (to_float(load_bytes(row.zeros + g)) - half_range(kBits)) * load(sums + g);
  }
  float tail = 0;
  for (; g < groups; ++g) tail += row.scales[g] * (row.zeros[g] - half_range(kBits)) * sums[g];
  return sum(total) + tail;
}

// The first `groups` groups of a row, whose `size` is B blocks (0: any number of blocks), times M tokens: adds to totals
// each group's levels times x, times its scale.
template <int kBits, int M, int B>
inline void dot_groups(const Row<kBits> &row, int64_t groups, int64_t size, const Input &in, vec (&totals)[M]) {
  const uint8_t *packed = row.levels;
  const float *x = in.x, *scales = row.scales;
  const int64_t inputs = in.inputs, blocks = B ? B : size / kBlock;
  for (int64_t g = 0; g < groups; ++g) {
    vec acc[M] = {};
    for (int64_t b = 0; b < blocks; ++b, packed += kBlock * kBits / 8, x += kBlock) {
      __builtin_prefetch(packed + kPrefetchBytes, 0, 2);
      vec levels[kBlockVecs];
      unpack<kBits>(packed, levels);
      for (int v = 0; v < kBlockVecs; ++v) {
        for (int m = 0; m < M; ++m) acc[m] += levels[v] * load(x + m * inputs + v * kLanes);
      }
    }
    for (int m = 0; m < M; ++m) totals[m] += scales[g] * acc[m];
  }
}

// totals[m] and tails[m] = a row times token m.
template <int kBits, int M>
inline void dot_row(const Row<kBits> &row, const Weights &weights, const Input &in, vec (&totals)[M],
                    float (&tails)[M]) {
  const int64_t size = weights.group_size, whole = size % kBlock == 0 ? in.inputs / size : 0;
  switch (size / kBlock) {
    case 1: dot_groups<kBits, M, 1>(row, whole, size, in, totals); break;
    case 4: dot_groups<kBits, M, 4>(row, whole, size, in, totals); break;
    default: dot_groups<kBits, M, 0>(row, whole, size, in, totals);
  }
  // Groups that don't consist of blocks, or are short.
  for (int64_t g = whole; g < weights.groups; ++g) {
    const uint8_t *packed = row.levels + g * size * kBits / 8;
    const int64_t count = std::min(in.inputs - g * size, size);
    const float *x = in.x + g * size;
    vec acc[M] = {};
    int64_t k = 0;
    for (; k + kBlock <= count; k += kBlock) {
      vec levels[kBlockVecs];
      unpack<kBits>(packed + k * kBits / 8, levels);
      for (int v = 0; v < kBlockVecs; ++v) {
        for (int m = 0; m < M; ++m) acc[m] += levels[v] * load(x + m * in.inputs + k + v * kLanes);
      }
    }
    for (int m = 0; m < M; ++m) totals[m] += row.scales[g] * acc[m];
    for (int64_t i = k; i < count; ++i) {
      const float scaled = row.scales[g] * level<kBits>(packed + k * kBits / 8, i - k);
      for (int m = 0; m < M; ++m) tails[m] += scaled * x[m * in.inputs + i];
    }
  }
}

// The sum of each of kRows vectors.
inline void sum_rows(vec (&rows)[kRows], float (&sums)[kRows]) {
  if constexpr (kLanes < kRows) {
    for (int r = 0; r < kRows; ++r) sums[r] = sum(rows[r]);
  } else {
    transpose(rows);
    float parts[kLanes / kRows][kRows];
    const vec all = ((rows[0] + rows[1]) + (rows[2] + rows[3])) + ((rows[4] + rows[5]) + (rows[6] + rows[7]));
    std::memcpy(parts, &all, sizeof(parts));
    for (int r = 0; r < kRows; ++r) sums[r] = parts[0][r];
    for (int part = 1; part < kLanes / kRows; ++part) {
      for (int r = 0; r < kRows; ++r) sums[r] += parts[part][r];
    }
  }
}

template <int kBits, int M>
void dot_quantized(const Weights &weights, int64_t first, const Input &in, Tile &out) {
  vec totals[M][kRows];
  float tails[M][kRows];
  for (int r = 0; r < kRows; ++r) {
    const Row<kBits> row(weights, std::min(first + r, weights.outputs - 1), in.inputs);
    vec of_row[M] = {};
    float tail[M] = {};
    dot_row<kBits, M>(row, weights, in, of_row, tail);
    for (int m = 0; m < M; ++m) {
      totals[m][r] = of_row[m];
      tails[m][r] = tail[m] - zero_sum(row, in.sums + m * weights.groups, weights.groups);
    }
  }
  for (int r = 0; r < kRows; ++r) store(out[r], vec{});
  for (int m = 0; m < M; ++m) {
    float sums[kRows];
    sum_rows(totals[m], sums);
    for (int r = 0; r < kRows; ++r) out[r][m] = sums[r] + tails[m][r];
  }
}

// out [inputs] = the row in float32.
template <int kBits>
void dequantize(const Row<kBits> &row, const Weights &weights, int64_t inputs, float *out) {
  const uint8_t *packed = row.levels;
  for (int64_t g = 0; g < weights.groups; ++g) {
    const int64_t end = std::min(inputs, (g + 1) * weights.group_size);
    const float scale = row.scales[g], zero = row.zeros ? row.zeros[g] - half_range(kBits) : 0.0f;
    int64_t k = g * weights.group_size;
    for (; k + kBlock <= end; k += kBlock, packed += kBlock * kBits / 8) {
      vec levels[kBlockVecs];
      unpack<kBits>(packed, levels);
      for (int v = 0; v < kBlockVecs; ++v) store(out + k + v * kLanes, (levels[v] - zero) * scale);
    }
    for (int64_t i = 0; i < end - k; ++i) out[k + i] = (level<kBits>(packed, i) - zero) * scale;
    packed += (end - k) * kBits / 8;
  }
}

// dot(m) for m tokens, 1 to kDotTokens, m a constant.
template <typename Dot>
inline void dot_tokens(int64_t count, const Dot &dot) {
  switch (count) {
    case 1: return dot(std::integral_constant<int, 1>());
    case 2: return dot(std::integral_constant<int, 2>());
    case 3: return dot(std::integral_constant<int, 3>());
    default: return dot(std::integral_constant<int, kDotTokens>());
  }
}

// Rows first .. first + kRows of weights that are not packed; rows beyond the last repeat it.
template <typename T>
void weight_rows(const Weights &weights, int64_t first, int64_t inputs, const T *(&rows)[kRows]) {
  const T *weight = static_cast<const T *>(weights.weight);
  for (int r = 0; r < kRows; ++r) rows[r] = weight + std::min(first + r, weights.outputs - 1) * inputs;
}

// Tokens in lanes, for weights that are no floats: to_floats(row, out) makes some of a row.
template <typename ToFloats>
void lane_tile_of_floats(const Weights &weights, int64_t first, const Input &in, int64_t start, int64_t count,
                         const ToFloats &to_floats, Tile &out) {
  float *floats = Thread::scratch(kRows * in.inputs);
  const float *rows[kRows];
  for (int r = 0; r < kRows; ++r) {
    rows[r] = floats + r * in.inputs;
    to_floats(std::min(first + r, weights.outputs - 1), floats + r * in.inputs);
  }
  lane_tile_of<kTileVecs>(rows, in.x + start * in.inputs, in, 0, count, out);
}

template <int kBits>
void compute_quantized(const Weights &weights, int64_t first, const Input &in, int64_t start, int64_t count,
                       Tile &out) {
  if (in.lanes == 0) return dot_tokens(count, [&](auto m) { dot_quantized<kBits, m()>(weights, first, in, out); });
  const auto to_floats = [&](int64_t row, float *floats) {
    dequantize(Row<kBits>(weights, row, in.inputs), weights, in.inputs, floats);
  };
  lane_tile_of_floats(weights, first, in, start, count, to_floats, out);
}

template <Kind kKind>
void compute_16(const Weights &weights, int64_t first, const Input &in, int64_t start, int64_t count, Tile &out) {
  if (in.lanes == 0) {
    const uint16_t *rows[kRows];
    weight_rows(weights, first, in.inputs, rows);
    return dot_tokens(count, [&](auto m) { dot_16<kKind, m()>(rows, in, out); });
  }
  const auto to_floats = [&](int64_t row, float *floats) {
    to_floats_16<kKind>(static_cast<const uint16_t *>(weights.weight) + row * in.inputs, in.inputs, floats);
  };
  lane_tile_of_floats(weights, first, in, start, count, to_floats, out);
}

void compute_float(const Weights &weights, int64_t first, const Input &in, int64_t start, int64_t count, Tile &out) {
  const float *rows[kRows];
  weight_rows(weights, first, in.inputs, rows);
  if (in.lanes == 0) return dot_tokens(count, [&](auto m) { dot_tile<m()>(rows, in, out); });
  lane_tile_of<kTileVecs>(rows, in.x + start * in.inputs, in, kRows * in.inputs, count, out);
}

}  // namespace

void compute_tile(const Weights &weights, int64_t first, const Input &in, int64_t start, int64_t count, Tile &out) {
  switch (weights.kind) {
    case Kind::kInt4: return compute_quantized<4>(weights, first, in, start, count, out);
    case Kind::kInt8: return compute_quantized<8>(weights, first, in, start, count, out);
    case Kind::kFloat16: return compute_16<Kind::kFloat16>(weights, first, in, start, count, out);
    case Kind::kBfloat16: return compute_16<Kind::kBfloat16>(weights, first, in, start, count, out);
    case Kind::kFloat32: return compute_float(weights, first, in, start, count, out);
  }
}

}  // namespace qwen
