// What the kernels should compute, in plain loops and double precision, and random weights in the kernels' layouts.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "kernels.h"

namespace loops {

using qwen::Kind;
using Floats = std::vector<float>;
using Doubles = std::vector<double>;
using Ints = std::vector<int32_t>;

constexpr float kEpsilon = 1e-5f;
constexpr float kNone = std::numeric_limits<float>::quiet_NaN();  // memory that nobody has written

struct Random {
  explicit Random(int seed) : engine(seed) {}
  int64_t below(int64_t end) { return std::uniform_int_distribution<int64_t>(0, end - 1)(engine); }
  Floats floats(int64_t count, double scale = 1) {
    std::normal_distribution<float> normal;
    Floats found(count);
    for (float &x : found) x = normal(engine) * static_cast<float>(scale);
    return found;
  }
  Ints permutation(int64_t count) {
    Ints found(count);
    for (int64_t i = 0; i < count; ++i) found[i] = static_cast<int32_t>(i);
    std::shuffle(found.begin(), found.end(), engine);
    return found;
  }
  std::mt19937 engine;
};

inline Doubles wide(const Floats &x) { return Doubles(x.begin(), x.end()); }

inline uint16_t to_half(float x) {
  const int exponent = x == 0 ? -15 : std::max(std::ilogb(x), -15);
  const double size = std::abs(x);
  const int bits = exponent < -14
                       ? static_cast<int>(size * 0x1p24)
                       : (exponent + 15) << 10 | static_cast<int>((size / std::ldexp(1, exponent) - 1) * 1024);
  return static_cast<uint16_t>(bits | (std::signbit(x) ? 0x8000 : 0));
}

inline double from_half(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const double size = exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24);
  return bits & 0x8000 ? -size : size;
}

// Not watched by a sanitizer, which would take most of its time for what is no kernel.
__attribute__((no_sanitize("address", "thread", "undefined"))) inline double dot(const double *a, const double *b,
                                                                              int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += a[i] * b[i];
  return sum;
}

// A linear layer with random weights, as `Weights` of kernels.h has them, and what they are: dense [outputs, inputs].
struct Linear {
  Linear(Random &random, Kind kind, int64_t inputs, int64_t outputs, bool has_bias, int64_t group_size = 0,
         bool symmetric = false, bool ordered = false)
      : kind(kind), inputs(inputs), outputs(outputs), group_size(group_size > 0 ? group_size : inputs),
        bias(has_bias ? random.floats(outputs) : Floats()) {
    if (kind == Kind::kInt8 || kind == Kind::kInt4) {
      quantized(random, symmetric, ordered);
      return;
    }
    floats = random.floats(outputs * inputs, 1 / std::sqrt(inputs));
    dense = wide(floats);
    if (kind == Kind::kFloat32) return;
    for (size_t i = 0; i < floats.size(); ++i) {
      if (kind == Kind::kFloat16) {
        halves.push_back(to_half(floats[i] * std::ldexp(1.0f, -static_cast<int>(i % 23))));  // denormal ones, too
        dense[i] = from_half(halves.back());
      } else {
        uint32_t bits;
        std::memcpy(&bits, &floats[i], sizeof(bits));
        halves.push_back(bits >> 16);
        bits &= 0xffff0000;
        float cut;
        std::memcpy(&cut, &bits, sizeof(bits));
        dense[i] = cut;
      }
    }
  }

  void quantized(Random &random, bool symmetric, bool ordered) {
    groups = (inputs + group_size - 1) / group_size;
    const int range = kind == Kind::kInt8 ? 256 : 16;
    if (ordered) order = random.permutation(inputs);
    dense.resize(outputs * inputs);
    for (int64_t row = 0; row < outputs; ++row) {
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t begin = g * group_size, count = std::min(inputs - begin, group_size);
        const int zero = symmetric ? range / 2 : static_cast<int>(random.below(range));
        scales.push_back(0.5f + static_cast<float>(random.below(100)) / 100);
        scales.back() /= static_cast<float>(range * std::sqrt(inputs));
        if (!symmetric) zeros.push_back(static_cast<uint8_t>(zero));
        Ints of_group(count);
        for (int64_t k = 0; k < count; ++k) {
          of_group[k] = static_cast<int32_t>(random.below(range));
          const int64_t input = ordered ? order[begin + k] : begin + k;
          dense[row * inputs + input] = static_cast<double>(scales.back()) * (of_group[k] - zero);
        }
        pack(of_group);
      }
    }
  }

  // The levels of a group, as CpuKernels.prepare_quantized lays them out.
  void pack(const Ints &of_group) {
    const size_t count = of_group.size();
    if (kind == Kind::kInt8) {
      for (int32_t level : of_group) levels.push_back(static_cast<uint8_t>(level ^ 0x80));
      return;
    }
    size_t k = 0;
    for (; k + 32 <= count; k += 32) {
      for (size_t i = k; i < k + 16; ++i) levels.push_back(static_cast<uint8_t>(of_group[i] | of_group[i + 16] << 4));
    }
    for (; k < count; k += 2) levels.push_back(static_cast<uint8_t>(of_group[k] | of_group[k + 1] << 4));
  }

  const void *weight() const {
    if (!levels.empty()) return levels.data();
    return halves.empty() ? static_cast<const void *>(floats.data()) : halves.data();
  }

  // [tokens, outputs] of x [tokens, inputs].
  Doubles times(const Doubles &x) const {
    const int64_t tokens = static_cast<int64_t>(x.size()) / inputs;
    Doubles out(tokens * outputs);
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t o = 0; o < outputs; ++o) {
        out[t * outputs + o] = dot(&x[t * inputs], &dense[o * inputs], inputs) + (bias.empty() ? 0 : bias[o]);
      }
    }
    return out;
  }

  Kind kind;
  int64_t inputs, outputs, group_size, groups = 0;
  Floats floats, scales, bias;
  std::vector<uint16_t> halves;
  std::vector<uint8_t> levels, zeros;
  Ints order;
  Doubles dense;
};

inline Doubles normalized(const Doubles &x, const Floats &weight) {
  Doubles out(x.size());
  for (size_t t = 0; t < x.size(); t += weight.size()) {
    double squares = 0;
    for (size_t i = 0; i < weight.size(); ++i) squares += x[t + i] * x[t + i];
    const double scale = 1 / std::sqrt(squares / static_cast<double>(weight.size()) + kEpsilon);
    for (size_t i = 0; i < weight.size(); ++i) out[t + i] = x[t + i] * scale * weight[i];
  }
  return out;
}

struct Sizes {
  int64_t heads, size, hidden, width, block_size;
  bool is_8_bits;
};

// What a layer remembers of one sequence in the loops that it is compared with: [positions, heads * size] each.
struct Memory {
  Doubles keys, values;
};

// What each token's queries and keys are rotated by, [tokens, size / 2] each.
struct Rotation {
  Rotation(Random &random, int64_t floats)
      : cos(random.floats(floats)), sin(random.floats(floats)), query_cos(random.floats(floats)),
        query_sin(random.floats(floats)) {}
  Floats cos, sin, query_cos, query_sin;
};

inline void rotate(double *x, const Sizes &sizes, const float *cos, const float *sin) {
  const int64_t half = sizes.size / 2;
  for (int64_t i = 0; i < half; ++i) {
    const double low = x[i], high = x[i + half];
    x[i] = low * cos[i] - high * sin[i];
    x[i + half] = high * cos[i] + low * sin[i];
  }
}

// To 8 bits and back: a head of all tokens [tokens, heads * size] shares scale and zero.
inline void to_8_bits(Doubles &x, const Sizes &sizes) {
  const int64_t row = sizes.heads * sizes.size, tokens = static_cast<int64_t>(x.size()) / row;
  for (int64_t h = 0; h < sizes.heads; ++h) {
    double low = x[h * sizes.size], high = low;
    const auto each = [&](const auto &body) {
      for (int64_t t = 0; t < tokens; ++t) {
        for (int64_t d = 0; d < sizes.size; ++d) body(x[t * row + h * sizes.size + d]);
      }
    };
    each([&](double value) { low = std::min(low, value), high = std::max(high, value); });
    const double scale = high > low ? (high - low) / 255 : 1, zero = -low / scale;
    each([&](double &value) {
      value = scale * (std::floor(std::min(std::max(value / scale + zero, 0.0), 255.0)) - zero);
    });
  }
}

class Layer {
 public:
  std::vector<Memory> memory;  // of each sequence

  Layer(Random &random, const Sizes &sizes, Kind kind, int64_t group_size, int64_t slots, int64_t sequences)
      : memory(sequences), sizes_(sizes) {
    const int64_t hidden = sizes.hidden, row = sizes.heads * sizes.size, width = sizes.width;
    const auto add = [&](int64_t inputs, int64_t outputs, bool has_bias) {
      const bool symmetric = random.below(2), ordered = random.below(2);
      linears_.emplace_back(random, kind, inputs, outputs, has_bias, group_size, symmetric, ordered);
    };
    norms_ = {random.floats(hidden), random.floats(hidden)};
    for (int i = 0; i < 3; ++i) add(hidden, row, true);
    add(row, hidden, false);
    add(hidden, width, false);
    add(width, hidden, false);
    add(hidden, width, false);
    if (sizes.is_8_bits) {
      for (auto &levels : levels_) levels.resize(slots * row);
      for (Floats &scales : scales_) scales.assign(slots * 2 * sizes.heads, kNone);
    } else {
      for (Floats &cache : cache_) cache.assign(slots * row, kNone);
    }
  }

  // As LayerTable of layer_table.py lays it out.
  void append_fields(std::vector<int64_t> &table) const {
    const auto address = [&](const auto &data) {
      table.push_back(data.empty() ? 0 : reinterpret_cast<int64_t>(data.data()));
    };
    for (size_t i = 0; i < linears_.size(); ++i) {
      if (i == 0 || i == 4) address(norms_[i / 4]);
      const Linear &linear = linears_[i];
      table.push_back(reinterpret_cast<int64_t>(linear.weight()));
      address(linear.bias);
      table.push_back(linear.outputs);
      table.push_back(static_cast<int64_t>(linear.kind));
      address(linear.scales);
      address(linear.zeros);
      address(linear.order);
      table.push_back(linear.groups);
      table.push_back(linear.groups ? linear.group_size : 0);
    }
    for (int part = 0; part < 2; ++part) {
      sizes_.is_8_bits ? address(levels_[part]) : address(cache_[part]);
      address(scales_[part]);
    }
  }

  // The next tokens of one sequence, x [tokens, hidden]; `first` is the one that the rotation begins with.
  Doubles next(const Doubles &x, const Rotation &rotation, int64_t first, Memory &memory) const {
    const int64_t row = sizes_.heads * sizes_.size, half = sizes_.size / 2;
    const int64_t tokens = static_cast<int64_t>(x.size()) / sizes_.hidden;
    const Doubles y = normalized(x, norms_[0]);
    Doubles query = linears_[0].times(y), key = linears_[1].times(y), value = linears_[2].times(y);
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t h = 0; h < sizes_.heads; ++h) {
        const int64_t place = t * row + h * sizes_.size, angle = (first + t) * half;
        rotate(&query[place], sizes_, &rotation.query_cos[angle], &rotation.query_sin[angle]);
        rotate(&key[place], sizes_, &rotation.cos[angle], &rotation.sin[angle]);
      }
    }
    if (sizes_.is_8_bits) to_8_bits(key, sizes_), to_8_bits(value, sizes_);
    memory.keys.insert(memory.keys.end(), key.begin(), key.end());
    memory.values.insert(memory.values.end(), value.begin(), value.end());
    Doubles out = linears_[3].times(attended(query, memory));
    for (size_t i = 0; i < out.size(); ++i) out[i] += x[i];
    const Doubles z = normalized(out, norms_[1]), gate = linears_[6].times(z);
    Doubles inner = linears_[4].times(z);
    for (size_t i = 0; i < inner.size(); ++i) inner[i] *= gate[i] / (1 + std::exp(-gate[i]));
    const Doubles added = linears_[5].times(inner);
    for (size_t i = 0; i < out.size(); ++i) out[i] += added[i];
    return out;
  }

 private:
  // query [tokens, heads * size], of the last positions.
  Doubles attended(const Doubles &query, const Memory &memory) const {
    const int64_t row = sizes_.heads * sizes_.size, size = sizes_.size;
    const int64_t tokens = static_cast<int64_t>(query.size()) / row;
    const int64_t before = static_cast<int64_t>(memory.keys.size()) / row - tokens;
    Doubles out(query.size());
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t place = 0; place < row; place += size) {
        Doubles weights(before + t + 1);
        double total = 0;
        for (size_t j = 0; j < weights.size(); ++j) {
          const double score = dot(&query[t * row + place], &memory.keys[j * row + place], size);
          total += weights[j] = std::exp(score / std::sqrt(size));
        }
        for (size_t j = 0; j < weights.size(); ++j) {
          for (int64_t d = 0; d < size; ++d) {
            out[t * row + place + d] += weights[j] / total * memory.values[j * row + place + d];
          }
        }
      }
    }
    return out;
  }

  Sizes sizes_;
  std::vector<Linear> linears_;  // wq, wk, wv, wo, w1, w2, w3
  std::vector<Floats> norms_;
  Floats cache_[2], scales_[2];
  std::vector<uint8_t> levels_[2];
};

}  // namespace loops
