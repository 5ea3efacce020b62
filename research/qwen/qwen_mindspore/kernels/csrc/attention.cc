// Attention, with rotation and the key/value cache: rotary, cache_write and prefill or decode attention in one.
//
// The cache has a row of H * D floats a slot. A query alone reads keys and values row by row, all its heads at once,
// for some positions at a time, which threads share out; what they give is joined as in Flash-Decoding. Many queries of
// a sequence are taken kQueries at a time, one a lane, with a softmax that is updated block by block.
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
constexpr int kPart = 32;      // positions that a lone query's threads take at a time
constexpr int kStreams = 4;    // of these, rows that are read side by side, each from end to end: so memory is fastest

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
void cache_rows(const CachePart &half, const Sequence &sequence, const Qkv &qkv, int64_t position, int64_t count,
               int64_t first, int64_t last, float *buffer, const float **rows) {
  const int64_t width = qkv.heads * qkv.size, part = (last - first) * qkv.size;
  for (int64_t j = 0; j < count; ++j) {
    const int64_t slot = sequence.slot(position + j);
    if (half.scales == nullptr) {
      rows[j] = static_cast<const float *>(half.data) + slot * width + first * qkv.size;
      continue;
    }
    float *row = buffer + j * part;
    rows[j] = row;
    const uint8_t *levels = static_cast<const uint8_t *>(half.data) + slot * width + first * qkv.size;
    const float *scales = half.scales + slot * 2 * qkv.heads;
    for (int64_t h = first; h < last; ++h, row += qkv.size, levels += qkv.size) {
      const float scale = scales[h], zero = scales[qkv.heads + h];
      int64_t d = 0;
      for (; d + kLanes <= qkv.size; d += kLanes) store(row + d, (to_float(load_bytes(levels + d)) - zero) * scale);
      for (; d < qkv.size; ++d) row[d] = (levels[d] - zero) * scale;
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
void key_value(const Qkv &qkv, int64_t t, float *key, float *value) {
  const float *k = qkv.data + (3 * t + 1) * qkv.heads * qkv.size;
  for (int64_t h = 0; h < qkv.heads; ++h) {
    rotate(k + h * qkv.size, qkv.cos + t * qkv.size / 2, qkv.sin + t * qkv.size / 2, qkv.size, key + h * qkv.size);
  }
  std::memcpy(value, k + qkv.heads * qkv.size, qkv.heads * qkv.size * sizeof(float));
}

// The query of token t and head h, rotated.
void query_of(const Qkv &qkv, int64_t t, int64_t h, float *out) {
  const int64_t half = qkv.size / 2;
  rotate(qkv.data + (3 * t * qkv.heads + h) * qkv.size, qkv.query_cos + t * half, qkv.query_sin + t * half, qkv.size, out);
}

// x = exp(x - top), in place; returns their sum.
float exponents(float *x, int64_t count, float top) {
  vec total{};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const vec e = exp(load(x + i) - top);
    store(x + i, e);
    total += e;
  }
  float sums = sum(total);
  for (; i < count; ++i) sums += x[i] = std::exp(x[i] - top);
  return sums;
}

// The products of x and y, [size], summed up to what is left in a vector.
vec products(const float *x, const float *y, int64_t size) {
  vec sums{};
  int64_t d = 0;
  for (; d + kLanes <= size; d += kLanes) sums += load(x + d) * load(y + d);
  for (; d < size; ++d) sums[d % kLanes] += x[d] * y[d];
  return sums;
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
void attend_lanes(const Qkv &qkv, const Sequence &sequence, int64_t t, int64_t count, int64_t start,
                  int64_t h, float *out) {
  constexpr int64_t kWidth = V * kLanes;
  const int64_t size = qkv.size, row_size = qkv.heads * size;
  float *memory = Thread::scratch(2 * size * kWidth + size + 2 * kKeys * size);
  auto *query = reinterpret_cast<vec(*)[V]>(memory);  // [D], a query a lane
  auto *sums = query + size;                          // [D]
  float *one = memory + 2 * size * kWidth, *buffer = one + size;
  std::memset(memory, 0, 2 * size * kWidth * sizeof(float));
  const float scale = 1.0f / std::sqrt(static_cast<float>(size));
  for (int64_t lane = 0; lane < count; ++lane) {
    query_of(qkv, t + lane, h, one);
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
    cache_rows(sequence.cache.keys, sequence, qkv, first, keys, h, h + 1, buffer, key_rows);
    cache_rows(sequence.cache.values, sequence, qkv, first, keys, h, h + 1, buffer + kKeys * size, value_rows);
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

// What a lone query gets of kPart positions: of each head the highest score, the sum of the exponentials less that, and
// the values' sum weighted by these, [D].
struct Part {
  Part(float *memory, const Qkv &qkv) : tops(memory), totals(tops + qkv.heads), sums(totals + qkv.heads) {}
  static int64_t floats(const Qkv &qkv) { return qkv.heads * (qkv.size + 2); }
  float *tops, *totals, *sums;
};

// The rows of a block of positions, taken kStreams at a time: body(head, first of them, how many, pointers to the head's
// parts). While a head is at work, its part of the next rows is fetched.
template <typename Body>
void for_streams(const CachePart &half, const Sequence &sequence, const Qkv &qkv, int64_t position, int64_t count,
                 int64_t length, float *buffer, const Body &body) {
  const int64_t bytes = qkv.size * (half.scales == nullptr ? sizeof(float) : 1);
  const float *rows[kLanes];
  cache_rows(half, sequence, qkv, position, count, 0, qkv.heads, buffer, rows);
  for (int64_t j = 0; j < count; j += kStreams) {
    const int64_t some = std::min<int64_t>(kStreams, count - j);
    const char *ahead[kStreams];
    for (int i = 0; i < kStreams; ++i) {
      const int64_t next = std::min(position + j + kStreams + i, length - 1);
      ahead[i] = static_cast<const char *>(half.data) + sequence.slot(next) * qkv.heads * bytes;
    }
    for (int64_t h = 0; h < qkv.heads; ++h) {
      for (const char *&row : ahead) {
        for (int64_t i = 0; i < bytes; i += kLineBytes) __builtin_prefetch(row + i, 0, 2);
        row += bytes;
      }
      body(h, j, some, rows + j);
      for (int64_t i = j; i < j + some; ++i) rows[i] += qkv.size;
    }
  }
}

// A lone query, `query` [H, D] at the last of `length` positions of its sequence, attends to positions first .. first +
// kPart. memory [H * kLanes * kLanes + H * kPart + kLanes * H * D].
void attend_part(const Qkv &qkv, const Sequence &sequence, const float *query, int64_t length, int64_t first,
                 float *memory, const Part &part) {
  const int64_t count = std::min<int64_t>(kPart, length - first);
  vec(*sums)[kLanes] = reinterpret_cast<vec(*)[kLanes]>(memory);  // [H], of a position each
  float *scores = memory + qkv.heads * kLanes * kLanes, *buffer = scores + qkv.heads * kPart;
  for (int64_t p = 0; p < count; p += kLanes) {
    const int64_t found = std::min<int64_t>(kLanes, count - p);
    if (found < kLanes) std::fill(memory, scores, 0.0f);
    for_streams(sequence.cache.keys, sequence, qkv, first + p, found, length, buffer,
                [&](int64_t h, int64_t j, int64_t some, const float *const *keys) {
      for (int64_t i = 0; i < some; ++i) sums[h][j + i] = products(query + h * qkv.size, keys[i], qkv.size);
    });
    for (int64_t h = 0; h < qkv.heads; ++h) {
      transpose(sums[h]);
      vec total{};
      for (const vec &of_lane : sums[h]) total += of_lane;
      store(scores + h * kPart + p, total);
    }
  }
  for (int64_t h = 0; h < qkv.heads; ++h) {
    part.tops[h] = *std::max_element(scores + h * kPart, scores + h * kPart + count);
    part.totals[h] = exponents(scores + h * kPart, count, part.tops[h]);
  }
  std::fill(part.sums, part.sums + qkv.heads * qkv.size, 0.0f);
  for (int64_t p = 0; p < count; p += kLanes) {
    for_streams(sequence.cache.values, sequence, qkv, first + p, std::min<int64_t>(kLanes, count - p), length, buffer,
                [&](int64_t h, int64_t j, int64_t some, const float *const *values) {
      weigh_values(scores + h * kPart + p + j, values, some, qkv.size, part.sums + h * qkv.size);
    });
  }
}

// out [D] = head h of parts first .. last, joined.
template <typename Parts>
void join_parts(const Qkv &qkv, int64_t h, const Parts &part, int64_t first, int64_t last, float *out) {
  float top = part(first).tops[h], total = 0;
  for (int64_t i = first + 1; i < last; ++i) top = std::max(top, part(i).tops[h]);
  std::fill(out, out + qkv.size, 0.0f);
  for (int64_t i = first; i < last; ++i) {
    const float weight = std::exp(part(i).tops[h] - top), *sums = part(i).sums + h * qkv.size;
    total += weight * part(i).totals[h];
    for (int64_t d = 0; d < qkv.size; ++d) out[d] += weight * sums[d];
  }
  for (int64_t d = 0; d < qkv.size; ++d) out[d] /= total;
}

// Runs of one query each.
void attend_lone(const Qkv &qkv, const std::vector<Queries> &runs, float *out, Thread &thread) {
  const int64_t width = qkv.heads * qkv.size;
  std::vector<int64_t> ends;  // of each run's parts, among all
  for (const Queries &run : runs) ends.push_back((ends.empty() ? 0 : ends.back()) + run.start / kPart + 1);
  float *shared = thread.shared(ends.back() * Part::floats(qkv));
  const auto part = [&](int64_t i) { return Part(shared + i * Part::floats(qkv), qkv); };
  float *memory = Thread::scratch(qkv.heads * kLanes * kLanes + qkv.heads * kPart + (kLanes + 1) * width);
  float *query = memory + qkv.heads * kLanes * kLanes + qkv.heads * kPart + kLanes * width;
  const float scale = 1.0f / std::sqrt(static_cast<float>(qkv.size));
  size_t rotated = runs.size();  // whose query this is
  for (int64_t item; (item = thread.next_of_own(ends.back())) >= 0;) {
    const size_t i = std::upper_bound(ends.begin(), ends.end(), item) - ends.begin();
    const Queries &run = runs[i];
    if (rotated != i) {
      for (int64_t h = 0; h < qkv.heads; ++h) query_of(qkv, run.t, h, query + h * qkv.size);
      for (int64_t d = 0; d < width; ++d) query[d] *= scale;
      rotated = i;
    }
    const int64_t first = (item - (i ? ends[i - 1] : 0)) * kPart;
    attend_part(qkv, run.sequence, query, run.start + 1, first, memory, part(item));
  }
  thread.barrier();
  for (int64_t item; (item = thread.next_of_own(runs.size() * qkv.heads)) >= 0;) {
    const int64_t i = item / qkv.heads, h = item % qkv.heads;
    const int64_t begin = i ? ends[i - 1] : 0;
    join_parts(qkv, h, part, begin, ends[i], out + runs[i].t * width + h * qkv.size);
  }
}

// Every query of every run, shared out among the threads of a region.
void attend_many(const Qkv &qkv, const std::vector<Queries> &runs, float *out, Thread &thread) {
  int64_t item = thread.next_item(), passed = 0;
  for (const Queries &run : runs) {
    const int64_t tiles = (run.count + kQueries - 1) / kQueries;
    for (; item < passed + tiles * qkv.heads; item = thread.next_item()) {
      // Head by head, whose keys and values then stay in the core's cache.
      const int64_t i = item - passed, offset = i % tiles * kQueries, h = i / tiles;
      const int64_t count = std::min<int64_t>(kQueries, run.count - offset);
      const auto attend_some = count > kLanes ? attend_lanes<kQueryVecs> : attend_lanes<1>;
      attend_some(qkv, run.sequence, run.t + offset, count, run.start + offset, h, out);
    }
    passed += tiles * qkv.heads;
  }
}

// x [count, stride], of which [count, size] are one head of one sequence's tokens, to the levels of their slots; all share
// a scale and a zero, as the reference has it. Source: quantize_cache_v in modeling_qwen.py of the released checkpoints.
void to_8_bits(const float *x, int64_t stride, int64_t count, const int32_t *slots, const Qkv &qkv, int64_t h,
               const CachePart &half) {
  if (count == 0) return;  // a sequence that this call has nothing of
  float low = x[0], high = x[0];
  for (int64_t t = 0; t < count; ++t) {
    for (int64_t d = 0; d < qkv.size; ++d) {
      low = std::min(low, x[t * stride + d]);
      high = std::max(high, x[t * stride + d]);
    }
  }
  // What is all one number has no span: its level is 0, and its zero that number with the opposite sign.
  const float scale = high > low ? (high - low) / 255.0f : 1.0f, zero = -low / scale;
  for (int64_t t = 0; t < count; ++t) {
    uint8_t *levels = static_cast<uint8_t *>(half.data) + (slots[t] * qkv.heads + h) * qkv.size;
    float *scales = half.scales + slots[t] * 2 * qkv.heads + h;
    scales[0] = scale;
    scales[qkv.heads] = zero;
    for (int64_t d = 0; d < qkv.size; ++d) {  // cut off, not rounded
      levels[d] = static_cast<uint8_t>(std::min(std::max(x[t * stride + d] / scale + zero, 0.0f), 255.0f));
    }
  }
}

// Rotated keys, and values, of all tokens to the cache.
void write_cache(Thread &thread, const Qkv &qkv, const Cache &cache, const int32_t *slots, const int32_t *queries,
                 int64_t sequences, int64_t tokens) {
  const int64_t width = qkv.heads * qkv.size;
  if (cache.keys.scales == nullptr) {
    float *keys = static_cast<float *>(cache.keys.data), *values = static_cast<float *>(cache.values.data);
    for (int64_t t = thread.index(); t < tokens; t += thread.count()) {
      key_value(qkv, t, keys + slots[t] * width, values + slots[t] * width);
    }
    return thread.barrier();
  }
  float *rows = thread.shared(tokens * 2 * width);
  for (int64_t t = thread.index(); t < tokens; t += thread.count()) {
    key_value(qkv, t, rows + 2 * t * width, rows + (2 * t + 1) * width);
  }
  thread.barrier();
  int64_t t = 0;
  for (int64_t b = 0; b < sequences; t += queries[b++]) {
    for (int64_t h = thread.index(); h < qkv.heads; h += thread.count()) {
      const float *keys = rows + 2 * t * width + h * qkv.size;
      to_8_bits(keys, 2 * width, queries[b], slots + t, qkv, h, cache.keys);
      to_8_bits(keys + width, 2 * width, queries[b], slots + t, qkv, h, cache.values);
    }
  }
  thread.barrier();
}

}  // namespace

void attend(Thread &thread, const Qkv &qkv, const Cache &cache, const int32_t *slots, const int32_t *lengths,
            const int32_t *queries, int64_t sequences, int64_t tokens, float *out) {
  write_cache(thread, qkv, cache, slots, queries, sequences, tokens);
  std::vector<Queries> runs;
  for (int64_t b = 0, t = 0; b < sequences; t += queries[b++]) {
    const int32_t *table = cache.block_tables ? cache.block_tables + b * cache.table_width : nullptr;
    runs.push_back({{cache, table, t}, t, queries[b], lengths[b] - queries[b]});
  }
  const bool lone = std::all_of(runs.begin(), runs.end(), [](const Queries &run) { return run.count == 1; });
  lone ? attend_lone(qkv, runs, out, thread) : attend_many(qkv, runs, out, thread);
  thread.barrier();
}

}  // namespace qwen
