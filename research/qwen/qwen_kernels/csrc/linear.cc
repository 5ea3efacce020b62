// Linear layers, fused with the norm before and the sum or the gate behind them.
//
// Weights are [out, in], as checkpoints hold them. One token or a few are dot products, bound by reading the weights;
// more tokens are put side by side in the lanes of vectors, so that a weight is read once and multiplies them all.
#include <algorithm>
#include <cmath>

#include "kernels.h"
#include "parallel.h"
#include "simd.h"

namespace qwen {
namespace {

constexpr int kRows = 8;                           // rows of a weight that a tile covers
constexpr int kDotTokens = 4;                      // up to so many tokens are dot products
constexpr int kTileVecs = kLanes == 16 ? 3 : 1;    // vectors of tokens in a tile: accumulators fill the registers
constexpr int kTileTokens = kTileVecs * kLanes;
constexpr int kPrefetch = 2048;                    // floats to fetch ahead of a dot product
constexpr int kLine = 16;                          // floats of a cache line
constexpr int64_t kBlockTokens = 1008;              // tokens that are laid out at once

// out[row][token] of kRows rows and up to kTileTokens tokens.
typedef float Tile[kRows][kTileTokens];

// Tokens of a linear layer's input, laid out for the tiles: [tokens, inputs] for dot products, which have no lanes;
// else groups of `lanes` tokens (kTileTokens, or fewer where that is all), [inputs, lanes] each.
struct Input {
  const float *x;
  int64_t inputs, lanes;
};

// Row by row, so that a weight is read from end to end: memory is what bounds this.
template <int M>
void dot_tile(const float *const *rows, const Input &in, Tile &out) {
  constexpr int kUnroll = M == 1 ? 4 : 2;
  for (int r = 0; r < kRows; ++r) {
    const float *w = rows[r];
    vec acc[kUnroll][M] = {};
    int64_t k = 0;
    for (; k + kUnroll * kLanes <= in.inputs; k += kUnroll * kLanes) {
      for (int u = 0; u < kUnroll; ++u) {
        __builtin_prefetch(w + k + u * kLanes + kPrefetch, 0, 2);
        const vec wide = load(w + k + u * kLanes);
        for (int m = 0; m < M; ++m) acc[u][m] += wide * load(in.x + m * in.inputs + k + u * kLanes);
      }
    }
    for (int m = 0; m < M; ++m) {
      for (int u = 1; u < kUnroll; ++u) acc[0][m] += acc[u][m];
      out[r][m] = sum(acc[0][m]) + dot(w + k, in.x + m * in.inputs + k, in.inputs - k);
    }
  }
}

template <int V>
void lane_tile(const float *const *rows, const float *x, const Input &in, Tile &out) {
  vec acc[kRows][V] = {};
  for (int64_t line = 0; line < in.inputs; line += kLine) {
    for (int r = 0; r < kRows; ++r) __builtin_prefetch(rows[r] + line + kRows * in.inputs, 0, 2);  // the next tile's
    for (int64_t k = line; k < std::min(line + kLine, in.inputs); ++k, x += in.lanes) {
      vec token[V];
      for (int v = 0; v < V; ++v) token[v] = load(x + v * kLanes);
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

// Rows first .. first + kRows of weight [outputs, inputs] times tokens start .. start + count.
void compute_tile(const float *weight, int64_t outputs, int64_t first, const Input &in, int64_t start, int64_t count,
                  Tile &out) {
  const float *rows[kRows];
  for (int r = 0; r < kRows; ++r) rows[r] = weight + std::min(first + r, outputs - 1) * in.inputs;
  if (in.lanes == 0) {
    switch (count) {
      case 1: return dot_tile<1>(rows, in, out);
      case 2: return dot_tile<2>(rows, in, out);
      case 3: return dot_tile<3>(rows, in, out);
      default: return dot_tile<4>(rows, in, out);
    }
  }
  const float *x = in.x + start * in.inputs;
  switch ((count + kLanes - 1) / kLanes) {
    case 1: return lane_tile<1>(rows, x, in, out);
    case 2: return lane_tile<std::min(2, kTileVecs)>(rows, x, in, out);
    default: return lane_tile<kTileVecs>(rows, x, in, out);
  }
}

// What rms_norm multiplies a token by, besides its weight.
float norm_scale(const float *x, Norm norm, int64_t width) {
  return norm.weight ? 1.0f / std::sqrt(dot(x, x, width) / width + norm.epsilon) : 1.0f;
}

// out = x, normalised if there is a norm.
void normalise(const float *x, Norm norm, int64_t width, float *out) {
  const float scale = norm_scale(x, norm, width);
  for (int64_t i = 0; i < width; ++i) out[i] = norm.weight ? x[i] * scale * norm.weight[i] : x[i];
}

// Lays `count` tokens of x, normalised if there is a norm, out in lanes as Input says: each thread its share.
void prepare(const float *x, int64_t count, int64_t width, Norm norm, int64_t lanes, float *out, int thread,
             int threads) {
  const int64_t begin = width * thread / threads, end = width * (thread + 1) / threads;
  float *scales = scratch(lanes);
  for (int64_t group = 0; group < count; group += lanes) {
    const int64_t tokens = std::min(lanes, count - group);
    const float *rows = x + group * width;
    for (int64_t t = 0; t < tokens; ++t) scales[t] = norm_scale(rows + t * width, norm, width);
    for (int64_t k = begin; k < end; ++k) {
      float *column = out + group * width + k * lanes;
      const float weight = norm.weight ? norm.weight[k] : 1.0f;
      for (int64_t t = 0; t < tokens; ++t) column[t] = rows[t * width + k] * scales[t] * weight;
      std::fill(column + tokens, column + lanes, 0.0f);
    }
  }
}

// Calls body(row, block, start, count, input) for every tile: kRows rows of a weight from `row`, and `count` tokens from
// `start` of the input, whose first is token `block` of x. x [tokens, width] is normalised if there is a norm.
template <typename Body>
void for_tiles(const float *x, int64_t tokens, int64_t width, Norm norm, int64_t rows, const Body &body) {
  const int64_t blocks = (tokens + kBlockTokens - 1) / kBlockTokens;
  const int64_t block = ((tokens + blocks - 1) / blocks + kTileTokens - 1) / kTileTokens * kTileTokens;
  const int64_t lanes = tokens <= kDotTokens ? 0
                        : std::min<int64_t>(kTileTokens, (tokens + kLanes - 1) / kLanes * kLanes);
  const int64_t padded = lanes == 0 ? 0 : block;
  static std::vector<float> prepared;  // one region at a time uses it: see Pool::run
  static std::mutex in_use;
  std::lock_guard<std::mutex> lock(in_use);
  if (static_cast<int64_t>(prepared.size()) < padded * width) prepared.resize(padded * width);
  Pool &pool = Pool::get();
  const int64_t row_tiles = (rows + kRows - 1) / kRows;
  // A few chunks a thread even out what the threads' cores can do.
  const int64_t chunk = std::max<int64_t>(1, row_tiles / (pool.size() * 8));
  const auto rows_of_tiles = [&](const Input &in, int64_t first, int64_t count) {
    for (int64_t begin = pool.next_item() * chunk; begin < row_tiles; begin = pool.next_item() * chunk) {
      // All rows of the chunk for some tokens before the next tokens: their outputs lie side by side.
      for (int64_t start = 0; start < count; start += kTileTokens) {
        for (int64_t tile = begin; tile < std::min(begin + chunk, row_tiles); ++tile) {
          body(tile * kRows, first, start, std::min<int64_t>(kTileTokens, count - start), in);
        }
      }
    }
  };
  pool.run([&](int thread) {
    if (lanes == 0) {  // little enough for every thread to prepare, and none to wait
      float *own = scratch(tokens * width);
      for (int64_t t = 0; t < tokens; ++t) normalise(x + t * width, norm, width, own + t * width);
      return rows_of_tiles(Input{own, width, 0}, 0, tokens);
    }
    for (int64_t first = 0; first < tokens; first += block) {
      const int64_t count = std::min(block, tokens - first);
      prepare(x + first * width, count, width, norm, lanes, prepared.data(), thread, pool.size());
      pool.barrier();
      rows_of_tiles(Input{prepared.data(), width, lanes}, first, count);
      pool.barrier();
    }
  });
}
}  // namespace

void linears(const float *x, int64_t tokens, int64_t width, Norm norm, const std::vector<Weights> &parts,
             const float *residual, float *out) {
  int64_t stride = 0, tiles = 0;
  for (const Weights &part : parts) {
    stride += part.outputs;
    tiles += (part.outputs + kRows - 1) / kRows;
  }
  for_tiles(x, tokens, width, norm, tiles * kRows,
            [&](int64_t row, int64_t block, int64_t start, int64_t n, const Input &in) {
    int64_t column = 0;
    const Weights *part = parts.data();
    for (; row >= (part->outputs + kRows - 1) / kRows * kRows; ++part) {
      row -= (part->outputs + kRows - 1) / kRows * kRows;
      column += part->outputs;
    }
    Tile tile;
    compute_tile(part->weight, part->outputs, row, in, start, n, tile);
    const int64_t rows = std::min<int64_t>(kRows, part->outputs - row);
    for (int64_t t = 0; t < n; ++t) {
      const int64_t place = (block + start + t) * stride + column + row;
      for (int64_t r = 0; r < rows; ++r) {
        out[place + r] = tile[r][t] + (part->bias ? part->bias[row + r] : 0) + (residual ? residual[place + r] : 0);
      }
    }
  });
}

void swiglu(const float *x, int64_t tokens, int64_t width, Norm norm, Weights w1, Weights w3, float *out) {
  const int64_t outputs = w1.outputs;
  for_tiles(x, tokens, width, norm, outputs, [&](int64_t row, int64_t block, int64_t start, int64_t n, const Input &in) {
    Tile up = {}, gate = {};
    compute_tile(w1.weight, outputs, row, in, start, n, up);
    compute_tile(w3.weight, outputs, row, in, start, n, gate);
    for (int r = 0; r < kRows; ++r) {
      for (int64_t t = 0; t < n; t += kLanes) {
        const vec g = load(gate[r] + t);
        store(up[r] + t, load(up[r] + t) * g / (1.0f + exp(-g)));
      }
    }
    const int64_t rows = std::min<int64_t>(kRows, outputs - row);
    for (int64_t t = 0; t < n; ++t) {
      for (int64_t r = 0; r < rows; ++r) out[(block + start + t) * outputs + row + r] = up[r][t];
    }
  });
}

void rms_norm(const float *x, int64_t tokens, int64_t width, Norm norm, float *out) {
  Pool &pool = Pool::get();
  pool.run([&](int thread) {
    for (int64_t t = thread; t < tokens; t += pool.size()) normalise(x + t * width, norm, width, out + t * width);
  });
}

}  // namespace qwen
