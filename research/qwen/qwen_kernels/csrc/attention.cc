// Attention, with rotation and the key/value cache: rotary, cache_write and prefill or decode attention in one.
//
// The cache has a row of H * D floats a slot. A query alone reads keys and values row by row, all its heads at once.
// Many queries of a sequence are taken kQueries at a time, one a lane, with a softmax that is updated block by block.
// Source: Dao et al., FlashAttention (arXiv:2205.14135); Kwon et al., PagedAttention (arXiv:2309.06180).
#include <algorithm>
#include <cmath>

#include "kernels.h"
#include "simd.h"

namespace qwen {
namespace {

constexpr int kKeys = 32;      // keys that many queries attend to between two updates of the softmax
constexpr int kColumns = 8;    // columns of a lane product that are summed at once
constexpr int kQueryVecs = kLanes == 16 ? 2 : 1;
constexpr int kQueries = kQueryVecs * kLanes;  // queries that are taken together

// Where the keys and values of one sequence are.
struct Sequence {
  Cache cache;
  const int32_t *table;  // the sequence's blocks; null: slots are positions, from `first_slot` on
  int64_t first_slot;

  int64_t slot(int64_t position) const {
    if (table == nullptr) return first_slot + position;
    return static_cast<int64_t>(table[position / cache.block_size]) * cache.block_size + position % cache.block_size;
  }
};

// Pointers to what `count` positions of a sequence hold of heads first .. last: into the cache, or, from one of 8 bits,
// into `buffer` [count, last - first, D], where it stands in float32.
void find_rows(const Half &half, const Sequence &sequence, const Rotation &r, int64_t position, int64_t count,
               int64_t first, int64_t last, float *buffer, const float **rows) {
  const int64_t width = r.heads * r.size, part = (last - first) * r.size;
  for (int64_t j = 0; j < count; ++j) {
    const int64_t slot = sequence.slot(position + j);
    if (half.scales == nullptr) {
      rows[j] = static_cast<const float *>(half.data) + slot * width + first * r.size;
      continue;
    }
    float *row = buffer + j * part;
    rows[j] = row;
    const uint8_t *levels = static_cast<const uint8_t *>(half.data) + slot * width + first * r.size;
    const float *scales = half.scales + slot * 2 * r.heads;
    for (int64_t h = first; h < last; ++h, row += r.size, levels += r.size) {
      const float scale = scales[h], zero = scales[r.heads + h];
      int64_t d = 0;
      for (; d + kLanes <= r.size; d += kLanes) store(row + d, (to_float(load_bytes(levels + d)) - zero) * scale);
      for (; d < r.size; ++d) row[d] = (levels[d] - zero) * scale;
    }
  }
}

void rotate(const float *x, const float *cos, const float *sin, int64_t size, float *out) {
  const int64_t half = size / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float low = x[i], high = x[i + half];
    out[i] = low * cos[i] - high * sin[i];
    out[i + half] = high * cos[i] + low * sin[i];
  }
}

// The key of token t, rotated, and its value.
void key_value(const Rotation &r, int64_t t, float *key, float *value) {
  const float *k = r.qkv + (3 * t + 1) * r.heads * r.size;
  for (int64_t h = 0; h < r.heads; ++h) {
    rotate(k + h * r.size, r.cos + t * r.size / 2, r.sin + t * r.size / 2, r.size, key + h * r.size);
  }
  std::memcpy(value, k + r.heads * r.size, r.heads * r.size * sizeof(float));
}

// The query of token t and head h, rotated.
void query_of(const Rotation &r, int64_t t, int64_t h, float *out) {
  rotate(r.qkv + (3 * t * r.heads + h) * r.size, r.query_cos + t * r.size / 2, r.query_sin + t * r.size / 2, r.size,
         out);
}

// The softmax of x[0 .. length], in place.
void softmax(float *x, int64_t length) {
  const float top = *std::max_element(x, x + length);
  vec total{};
  int64_t i = 0;
  for (; i + kLanes <= length; i += kLanes) {
    const vec e = exp(load(x + i) - top);
    store(x + i, e);
    total += e;
  }
  float sums = sum(total);
  for (; i < length; ++i) sums += x[i] = std::exp(x[i] - top);
  for (i = 0; i < length; ++i) x[i] /= sums;
}

// scores[j] = scale * query . keys[j], of `count` keys up to kLanes.
void score_keys(const float *query, const float *const *keys, int64_t count, int64_t size, float scale, float *scores) {
  vec products[kLanes] = {};
  float tails[kLanes] = {};
  for (int64_t j = 0; j < count; ++j) {
    int64_t d = 0;
    for (; d + kLanes <= size; d += kLanes) products[j] += load(query + d) * load(keys[j] + d);
    for (; d < size; ++d) tails[j] += query[d] * keys[j][d];
  }
  transpose(products);
  vec total = load(tails);
  for (const vec &of_lane : products) total += of_lane;
  total *= scale;
  std::memcpy(scores, &total, count * sizeof(float));
}

// out += the sum over j of weights[j] * values[j], [size]. V vectors of sums stay in registers.
template <int V>
int64_t weigh_columns(const float *weights, const float *const *values, int64_t count, int64_t size, int64_t d,
                      float *out) {
  for (; d + V * kLanes <= size; d += V * kLanes) {
    vec sums[V];
    for (int v = 0; v < V; ++v) sums[v] = load(out + d + v * kLanes);
    for (int64_t j = 0; j < count; ++j) {
      for (int v = 0; v < V; ++v) sums[v] += weights[j] * load(values[j] + d + v * kLanes);
    }
    for (int v = 0; v < V; ++v) store(out + d + v * kLanes, sums[v]);
  }
  return d;
}

void weigh_values(const float *weights, const float *const *values, int64_t count, int64_t size, float *out) {
  int64_t d = weigh_columns<4>(weights, values, count, size, 0, out);
  d = weigh_columns<1>(weights, values, count, size, d, out);
  for (; d < size; ++d) {
    for (int64_t j = 0; j < count; ++j) out[d] += weights[j] * values[j][d];
  }
}

// One query, heads first .. last, attends to positions 0 .. length - 1.
void attend_one(const Rotation &rotation, const Sequence &sequence, int64_t t, int64_t length, int64_t first,
                int64_t last, float *out) {
  const int64_t size = rotation.size, count = last - first;
  float *query = Thread::scratch(count * (size + length + kLanes * size));
  float *buffer = query + count * size, *scores = buffer + count * kLanes * size;
  const float scale = 1.0f / std::sqrt(static_cast<float>(size));
  for (int64_t h = 0; h < count; ++h) query_of(rotation, t, first + h, query + h * size);
  // A few positions at a time, all heads: what a row holds is read together.
  const float *rows[kLanes];
  for (int64_t p = 0; p < length; p += kLanes) {
    const int64_t keys = std::min<int64_t>(kLanes, length - p);
    find_rows(sequence.cache.keys, sequence, rotation, p, keys, first, last, buffer, rows);
    for (int64_t h = 0; h < count; ++h) {
      score_keys(query + h * size, rows, keys, size, scale, scores + h * length + p);
      for (int64_t j = 0; j < keys; ++j) rows[j] += size;
    }
  }
  for (int64_t h = 0; h < count; ++h) softmax(scores + h * length, length);
  std::fill(out, out + count * size, 0.0f);
  for (int64_t p = 0; p < length; p += kLanes) {
    const int64_t values = std::min<int64_t>(kLanes, length - p);
    find_rows(sequence.cache.values, sequence, rotation, p, values, first, last, buffer, rows);
    for (int64_t h = 0; h < count; ++h) {
      weigh_values(scores + h * length + p, rows, values, size, out + h * size);
      for (int64_t j = 0; j < values; ++j) rows[j] += size;
    }
  }
}

// acc[c] += the sum over i of lanes[i] * column(i, c), V vectors each, for `columns` up to kColumns.
template <int V, typename Column>
void lane_product(const vec (*lanes)[V], int64_t n, int64_t columns, const Column &column, vec (*acc)[V]) {
  vec sums[kColumns][V] = {};
  if (columns == kColumns) {
    for (int64_t i = 0; i < n; ++i) {
      for (int c = 0; c < kColumns; ++c) {
        for (int v = 0; v < V; ++v) sums[c][v] += lanes[i][v] * column(i, c);
      }
    }
  } else {
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t c = 0; c < columns; ++c) {
        for (int v = 0; v < V; ++v) sums[c][v] += lanes[i][v] * column(i, c);
      }
    }
  }
  for (int64_t c = 0; c < columns; ++c) {
    for (int v = 0; v < V; ++v) acc[c][v] += sums[c][v];
  }
}

// Queries t .. t + count (up to V * kLanes) of head h, at positions start .. start + count, attend to all before them.
template <int V>
void attend_lanes(const Rotation &rotation, const Sequence &sequence, int64_t t, int64_t count, int64_t start,
                  int64_t h, float *out) {
  constexpr int64_t kWidth = V * kLanes;
  const int64_t size = rotation.size, row_size = rotation.heads * size;
  float *memory = Thread::scratch(2 * size * kWidth + size + 2 * kKeys * size);
  auto *query = reinterpret_cast<vec(*)[V]>(memory);  // [D], a query a lane
  auto *sums = query + size;                          // [D]
  float *one = memory + 2 * size * kWidth, *buffer = one + size;
  std::memset(memory, 0, 2 * size * kWidth * sizeof(float));
  const float scale = 1.0f / std::sqrt(static_cast<float>(size));
  for (int64_t lane = 0; lane < count; ++lane) {
    query_of(rotation, t + lane, h, one);
    for (int64_t d = 0; d < size; ++d) memory[d * kWidth + lane] = one[d] * scale;
  }
  vec position[V], top[V], total[V] = {};
  for (int64_t lane = 0; lane < kWidth; ++lane) {
    position[lane / kLanes][lane % kLanes] = start + std::min<int64_t>(lane, count - 1);
  }
  for (int v = 0; v < V; ++v) top[v] = splat(-1e30f);
  for (int64_t first = 0; first < start + count; first += kKeys) {
    const int64_t keys = std::min<int64_t>(kKeys, start + count - first);
    const float *key_rows[kKeys], *value_rows[kKeys];
    find_rows(sequence.cache.keys, sequence, rotation, first, keys, h, h + 1, buffer, key_rows);
    find_rows(sequence.cache.values, sequence, rotation, first, keys, h, h + 1, buffer + kKeys * size, value_rows);
    vec weights[kKeys][V] = {};
    for (int64_t j = 0; j < keys; j += kColumns) {
      lane_product<V>(query, size, std::min<int64_t>(kColumns, keys - j),
                      [&](int64_t d, int64_t c) { return key_rows[j + c][d]; }, weights + j);
    }
    vec correction[V];
    for (int v = 0; v < V; ++v) {
      vec new_top = top[v];
      for (int64_t j = 0; j < keys; ++j) {
        vec &weight = weights[j][v];
        if (first + j > start) weight = splat(first + j) > position[v] ? splat(-1e30f) : weight;
        new_top = max(new_top, weight);
      }
      correction[v] = exp(top[v] - new_top);
      total[v] *= correction[v];
      for (int64_t j = 0; j < keys; ++j) total[v] += weights[j][v] = exp(weights[j][v] - new_top);
      top[v] = new_top;
    }
    for (int64_t d = 0; d < size; d += kColumns) {
      const int64_t columns = std::min<int64_t>(kColumns, size - d);
      for (int64_t c = 0; c < columns; ++c) {
        for (int v = 0; v < V; ++v) sums[d + c][v] *= correction[v];
      }
      lane_product<V>(weights, keys, columns,
                      [&](int64_t j, int64_t c) { return value_rows[j][d + c]; }, sums + d);
    }
  }
  for (int64_t d = 0; d < size; ++d) {
    for (int v = 0; v < V; ++v) sums[d][v] /= total[v];
    for (int64_t lane = 0; lane < count; ++lane) {
      out[(t + lane) * row_size + h * size + d] = memory[(size + d) * kWidth + lane];
    }
  }
}

// A run of queries of one sequence: tokens t .. t + count at positions start .. start + count.
struct Queries {
  Sequence sequence;
  int64_t t, count, start;
};

// Every query of every run, shared out among the threads of a region.
void share_out(const Rotation &rotation, const std::vector<Queries> &runs, float *out, Thread &thread) {
  const int64_t heads = rotation.heads, size = rotation.size;
  // Heads of a lone query go together, for they read one row; but every thread should have some.
  const int64_t groups = std::min<int64_t>(heads, std::max<int64_t>(1, 2 * thread.count() / runs.size()));
  int64_t item = thread.next_item(), passed = 0;
  for (const Queries &run : runs) {
    const int64_t tiles = run.count == 1 ? groups : (run.count + kQueries - 1) / kQueries * heads;
    for (; item < passed + tiles; item = thread.next_item()) {
      const int64_t i = item - passed;
      if (run.count == 1) {
        const int64_t first = heads * i / groups, last = heads * (i + 1) / groups;
        attend_one(rotation, run.sequence, run.t, run.start + 1, first, last, out + (run.t * heads + first) * size);
      } else {
        // Head by head, whose keys and values then stay in the core's cache.
        const int64_t offset = i % (tiles / heads) * kQueries, h = i / (tiles / heads);
        const int64_t count = std::min<int64_t>(kQueries, run.count - offset);
        const auto attend_some = count > kLanes ? attend_lanes<kQueryVecs> : attend_lanes<1>;
        attend_some(rotation, run.sequence, run.t + offset, count, run.start + offset, h, out);
      }
    }
    passed += tiles;
  }
}

// x [count, stride], of which [count, size] are one head of one sequence's tokens, to the levels of their slots; all share
// a scale and a zero, as the reference has it. Source: quantize_cache_v in modeling_qwen.py of the released checkpoints.
void to_8_bits(const float *x, int64_t stride, int64_t count, const int32_t *slots, const Rotation &r, int64_t h,
               const Half &half) {
  float low = x[0], high = x[0];
  for (int64_t t = 0; t < count; ++t) {
    for (int64_t d = 0; d < r.size; ++d) {
      low = std::min(low, x[t * stride + d]);
      high = std::max(high, x[t * stride + d]);
    }
  }
  // What is all one number has no span: its level is 0, and its zero that number with the opposite sign.
  const float scale = high > low ? (high - low) / 255.0f : 1.0f, zero = -low / scale;
  for (int64_t t = 0; t < count; ++t) {
    uint8_t *levels = static_cast<uint8_t *>(half.data) + (slots[t] * r.heads + h) * r.size;
    float *scales = half.scales + slots[t] * 2 * r.heads + h;
    scales[0] = scale;
    scales[r.heads] = zero;
    for (int64_t d = 0; d < r.size; ++d) {  // cut off, not rounded
      levels[d] = static_cast<uint8_t>(std::min(std::max(x[t * stride + d] / scale + zero, 0.0f), 255.0f));
    }
  }
}

// Rotated keys, and values, of all tokens to the cache.
void write_cache(Thread &thread, const Rotation &r, const Cache &cache, const int32_t *slots, const int32_t *queries,
                 int64_t sequences, int64_t tokens) {
  const int64_t width = r.heads * r.size;
  if (cache.keys.scales == nullptr) {
    float *keys = static_cast<float *>(cache.keys.data), *values = static_cast<float *>(cache.values.data);
    for (int64_t t = thread.index(); t < tokens; t += thread.count()) {
      key_value(r, t, keys + slots[t] * width, values + slots[t] * width);
    }
    return thread.barrier();
  }
  float *rows = thread.shared(tokens * 2 * width);
  for (int64_t t = thread.index(); t < tokens; t += thread.count()) {
    key_value(r, t, rows + 2 * t * width, rows + (2 * t + 1) * width);
  }
  thread.barrier();
  int64_t t = 0;
  for (int64_t b = 0; b < sequences; t += queries[b++]) {
    for (int64_t h = thread.index(); h < r.heads; h += thread.count()) {
      const float *keys = rows + 2 * t * width + h * r.size;
      to_8_bits(keys, 2 * width, queries[b], slots + t, r, h, cache.keys);
      to_8_bits(keys + width, 2 * width, queries[b], slots + t, r, h, cache.values);
    }
  }
  thread.barrier();
}

}  // namespace

void attend(Thread &thread, const Rotation &rotation, const Cache &cache, const int32_t *slots, const int32_t *lengths,
            const int32_t *queries, int64_t sequences, int64_t tokens, float *out) {
  write_cache(thread, rotation, cache, slots, queries, sequences, tokens);
  std::vector<Queries> runs;
  for (int64_t b = 0, t = 0; b < sequences; t += queries[b++]) {
    const int32_t *table = cache.block_tables ? cache.block_tables + b * cache.table_width : nullptr;
    runs.push_back({{cache, table, t}, t, queries[b], lengths[b] - queries[b]});
  }
  share_out(rotation, runs, out, thread);
  thread.barrier();
}

}  // namespace qwen
