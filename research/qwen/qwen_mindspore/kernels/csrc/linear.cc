// Linear layers, fused with the norm before and the sum or the gate behind them: what a tile computes, shared out.
#include <algorithm>
#include <cmath>

#include "kernels.h"
#include "simd.h"
#include "tile.h"

namespace qwen {
namespace {

constexpr int64_t kBlockTokens = 1008;  // tokens that are laid out at once

// What rms_norm multiplies a token by, besides its weight.
float norm_scale(const float *x, Norm norm, int64_t width) {
  return norm.weight ? 1.0f / std::sqrt(dot(x, x, width) / width + norm.epsilon) : 1.0f;
}

// out = x, normalized if there is a norm, with the inputs in the weights' order.
void normalize(const float *x, Norm norm, int64_t width, const int32_t *order, float *out) {
  const float scale = norm_scale(x, norm, width);
  if (order != nullptr) {
    for (int64_t i = 0; i < width; ++i) out[i] = x[order[i]] * scale * (norm.weight ? norm.weight[order[i]] : 1.0f);
    return;
  }
  for (int64_t i = 0; i < width; ++i) out[i] = norm.weight ? x[i] * scale * norm.weight[i] : x[i];
}

// sums [groups] of x [width]: see Input.
void sum_groups(const float *x, int64_t width, const Weights &weights, float *sums) {
  for (int64_t g = 0; g < weights.groups; ++g) {
    const int64_t begin = g * weights.group_size, end = std::min(width, begin + weights.group_size);
    vec total{};
    int64_t k = begin;
    for (; k + kLanes <= end; k += kLanes) total += load(x + k);
    sums[g] = sum(total);
    for (; k < end; ++k) sums[g] += x[k];
  }
}

// Lays `count` tokens of x, normalized if there is a norm, out in lanes as Input says, the inputs in the weights' order:
// each thread its share.
void prepare(Thread &thread, const float *x, int64_t count, int64_t width, Norm norm, const int32_t *order,
             int64_t lanes, float *out) {
  const int64_t columns = (width + kLanes - 1) / kLanes;
  const int64_t begin = columns * thread.index() / thread.count() * kLanes;
  const int64_t end = std::min(width, columns * (thread.index() + 1) / thread.count() * kLanes);
  float *scales = Thread::scratch(lanes);
  for (int64_t group = 0; group < count; group += lanes) {
    const int64_t tokens = std::min(lanes, count - group);
    const float *rows = x + group * width;
    for (int64_t t = 0; t < tokens; ++t) scales[t] = norm_scale(rows + t * width, norm, width);
    for (int64_t first = 0; first < lanes; first += kLanes) {
      const int64_t last = std::min(first + kLanes, tokens);
      for (int64_t k = begin; k < end; k += kLanes) {
        const int64_t inputs = std::min<int64_t>(kLanes, end - k);
        vec square[kLanes] = {};
        for (int64_t t = first; t < last; ++t) {
          vec &row = square[t - first];
          const float *of_token = rows + t * width;
          if (order != nullptr) {
            for (int64_t i = 0; i < inputs; ++i) row[i] = of_token[order[k + i]];
          } else {
            std::memcpy(&row, of_token + k, inputs * sizeof(float));
            __builtin_prefetch(of_token + k + 4 * kLanes, 0, 3);
          }
          row *= scales[t];
        }
        transpose(square);
        for (int64_t i = 0; i < inputs; ++i) {
          const float weight = norm.weight ? norm.weight[order ? order[k + i] : k + i] : 1.0f;
          store(out + group * width + (k + i) * lanes + first, square[i] * weight);
        }
      }
    }
  }
}

// out[t * stride + r] = tile[r][t], plus bias[r] if not null and residual at the same place if not null.
void store_tile(const Tile &tile, int64_t tokens, int64_t rows, int64_t stride, const float *bias,
                const float *residual, float *out) {
  if (rows == kRows && kLanes >= kRows && tokens > kDotTokens) {
    constexpr int kGroups = std::max(1, kLanes / kRows);  // tokens of a transposed vector
    for (int64_t first = 0; first < tokens; first += kLanes) {
      vec columns[kRows];
      for (int r = 0; r < kRows; ++r) columns[r] = load(tile[r] + first) + (bias ? bias[r] : 0.0f);
      transpose(columns);
      for (int64_t t = first; t < std::min<int64_t>(first + kLanes, tokens); ++t) {
        float of_token[kGroups][kRows];
        std::memcpy(of_token, &columns[(t - first) % kRows], sizeof(of_token));
        const float *sums = of_token[(t - first) / kRows];
        for (int r = 0; r < kRows; ++r) out[t * stride + r] = sums[r] + (residual ? residual[t * stride + r] : 0.0f);
      }
    }
    return;
  }
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t place = t * stride + r;
      out[place] = tile[r][t] + (bias ? bias[r] : 0.0f) + (residual ? residual[place] : 0.0f);
    }
  }
}

// Calls body(row, start, count, inputs, first) for every tile: kRows rows from `row`, and `count` tokens from `start` of
// the input, whose first is token `first` of x. inputs[i] is for parts[i]: parts whose inputs have an order of their own
// have inputs of their own. x [tokens, width] is normalized if there is a norm.
template <typename Body>
void for_tiles(Thread &thread, const float *x, int64_t tokens, int64_t width, Norm norm,
               const std::vector<Weights> &parts, int64_t rows, const Body &body) {
  const int64_t row_tiles = (rows + kRows - 1) / kRows;
  const bool is_ordered = std::any_of(parts.begin(), parts.end(), [](const Weights &part) { return part.order; });
  const size_t sources = is_ordered ? parts.size() : 1;
  std::vector<Input> inputs(parts.size());
  if (tokens <= kDotTokens) {  // little enough for every thread to prepare, and none to wait
    const auto fewer = [](const Weights &a, const Weights &b) { return a.groups < b.groups; };
    const Weights &grouped = *std::max_element(parts.begin(), parts.end(), fewer);  // the quantized ones are alike
    const int64_t groups = grouped.groups;
    float *own = Thread::scratch(sources * tokens * (width + groups));
    float *sums = own + sources * tokens * width;
    for (size_t i = 0; i < parts.size(); ++i) {
      const size_t source = is_ordered ? i : 0;
      inputs[i] = {own + source * tokens * width, width, 0, sums + source * tokens * groups};
      for (int64_t t = 0; t < tokens && source == i; ++t) {
        float *token = own + (source * tokens + t) * width;
        normalize(x + t * width, norm, width, parts[i].order, token);
        sum_groups(token, width, grouped, sums + (source * tokens + t) * groups);
      }
    }
    for (int64_t tile; (tile = thread.next_of_own(row_tiles)) >= 0;) body(tile * kRows, 0, tokens, inputs, 0);
    return thread.barrier();
  }
  const int64_t blocks = (tokens + kBlockTokens - 1) / kBlockTokens;
  const int64_t block = ((tokens + blocks - 1) / blocks + kTileTokens - 1) / kTileTokens * kTileTokens;
  const int64_t lanes = std::min<int64_t>(kTileTokens, (tokens + kLanes - 1) / kLanes * kLanes);
  // A few chunks a thread even out what the threads' cores can do.
  const int64_t chunk = std::max<int64_t>(1, row_tiles / (thread.count() * 8));
  float *prepared = thread.shared(sources * block * width);
  for (size_t i = 0; i < parts.size(); ++i) {
    inputs[i] = {prepared + (is_ordered ? i : 0) * block * width, width, lanes, nullptr};
  }
  for (int64_t first = 0; first < tokens; first += block) {
    const int64_t count = std::min(block, tokens - first);
    for (size_t source = 0; source < sources; ++source) {
      prepare(thread, x + first * width, count, width, norm, parts[source].order, lanes,
              prepared + source * block * width);
    }
    thread.barrier();
    for (int64_t own; (own = thread.next_of_own((row_tiles + chunk - 1) / chunk)) >= 0;) {
      // All rows of the chunk for some tokens before the next tokens: their outputs lie side by side.
      for (int64_t start = 0; start < count; start += kTileTokens) {
        for (int64_t tile = own * chunk; tile < std::min((own + 1) * chunk, row_tiles); ++tile) {
          body(tile * kRows, start, std::min<int64_t>(kTileTokens, count - start), inputs, first);
        }
      }
    }
    thread.barrier();
  }
}

// A tile's outputs, [tokens] of them `stride` apart, will be written: fetches the memory while the tile is computed.
void expect_tile(int64_t tokens, int64_t stride, const float *out) {
  for (int64_t t = 0; t < tokens; ++t) __builtin_prefetch(out + t * stride, 1, 3);
}

}  // namespace

void linears(Thread &thread, const float *x, int64_t tokens, int64_t width, Norm norm,
             const std::vector<Weights> &parts, const float *residual, float *out) {
  int64_t stride = 0, tiles = 0;
  for (const Weights &part : parts) {
    stride += part.outputs;
    tiles += (part.outputs + kRows - 1) / kRows;
  }
  const auto body = [&](int64_t row, int64_t start, int64_t count, const std::vector<Input> &inputs, int64_t first) {
    int64_t column = 0;
    const Weights *part = parts.data();
    for (; row >= (part->outputs + kRows - 1) / kRows * kRows; ++part) {
      row -= (part->outputs + kRows - 1) / kRows * kRows;
      column += part->outputs;
    }
    const int64_t place = (first + start) * stride + column + row;
    expect_tile(count, stride, out + place);
    Tile tile;
    compute_tile(*part, row, inputs[part - parts.data()], start, count, tile);
    store_tile(tile, count, std::min<int64_t>(kRows, part->outputs - row), stride,
               part->bias ? part->bias + row : nullptr, residual ? residual + place : nullptr, out + place);
  };
  for_tiles(thread, x, tokens, width, norm, parts, tiles * kRows, body);
}

void swiglu(Thread &thread, const float *x, int64_t tokens, int64_t width, Norm norm, Weights w1, Weights w3,
            float *out) {
  const int64_t outputs = w1.outputs;
  const auto body = [&](int64_t row, int64_t start, int64_t count, const std::vector<Input> &inputs, int64_t first) {
    const int64_t place = (first + start) * outputs + row;
    expect_tile(count, outputs, out + place);
    Tile up, gate;
    compute_tile(w1, row, inputs[0], start, count, up);
    compute_tile(w3, row, inputs[1], start, count, gate);
    for (int r = 0; r < kRows; ++r) {
      for (int64_t t = 0; t < count; t += kLanes) {
        const vec g = load(gate[r] + t);
        store(up[r] + t, load(up[r] + t) * g / (1.0f + exp(-g)));
      }
    }
    store_tile(up, count, std::min<int64_t>(kRows, outputs - row), outputs, nullptr, nullptr,
               out + place);
  };
  for_tiles(thread, x, tokens, width, norm, {w1, w3}, outputs, body);
}

void rms_norm(Thread &thread, const float *x, int64_t tokens, int64_t width, Norm norm, float *out) {
  for (int64_t t = thread.index(); t < tokens; t += thread.count()) {
    normalize(x + t * width, norm, width, nullptr, out + t * width);
  }
  thread.barrier();
}

}  // namespace qwen
