// The kernels as MindSpore operators. T tokens, H heads of size D; float32 unless said otherwise.
#include <cstddef>
#include <numeric>

#include "kernels.h"
#include "op.h"

namespace qwen {
namespace {

// The weights that are inputs 2 and on: the weight, and of scales, zeros, order and bias, in this order, what there is.
// Input 0 is x [T, in]; input 1, of `CpuKernels.bind`, says the kind, the group_size (not above 0: all inputs), and of zeros,
// order and bias whether they are there.
Weights weights_of(const Op &op) {
  const float *settings = op.f32(1);
  int next = 2;
  Weights found{op.f32(next++), nullptr, op.dim(2, 0), static_cast<Kind>(settings[0])};
  if (found.kind == Kind::kInt8 || found.kind == Kind::kInt4) {
    found.groups = op.dim(next, 1);
    found.group_size = settings[1] > 0 ? static_cast<int64_t>(settings[1]) : op.dim(0, 1);
    found.scales = op.f32(next++);
  }
  if (settings[2] != 0) found.zeros = op.u8(next++);
  if (settings[3] != 0) found.order = op.i32(next++);
  if (settings[4] != 0) found.bias = op.f32(next++);
  return found;
}

// The weights and the cache of a layer, as `LayerTable` in layer_table.py lays them out.
struct LayerWeights {
  const float *attention_norm;
  Weights wq, wk, wv, wo;
  const float *ffn_norm;
  Weights w1, w2, w3;
  CachePart keys, values;
};
static_assert(sizeof(LayerWeights) == 69 * 8, "FIELDS of layer_table.py");

// x [T, hidden]; settings: epsilon and the cache's block_size; address and length of an array of LayerWeights, int64 [2];
// cos, sin, query cos and query sin [T, D / 2]. What the operators that run all layers have in common. While there is one,
// no other operator runs.
class Layers {
 public:
  static constexpr int kInputs = 7;

  explicit Layers(const Op &op) : op_(op), tokens_(op.dim(0, 0)), hidden_(op.dim(0, 1)), epsilon_(op.f32(1)[0]) {
    layers_ = reinterpret_cast<const LayerWeights *>(op.i64(2)[0]);
    count_ = op.i64(2)[1];
    row_size_ = layers_->wq.outputs;
    const int64_t half = op.dim(3, 1);
    qkv_ = {nullptr, op.f32(3), op.f32(4), op.f32(5), op.f32(6), row_size_ / (2 * half), 2 * half};
  }

  int64_t tokens() const { return tokens_; }

  // Memory for a cache that lasts as long as this, of keys (0) or values (1).
  float *own_cache(int part) { return pool_.between(3 + part, tokens_ * row_size_); }

  // Runs them, with attend(thread, layer, qkv, out) between the projections of each.
  template <typename Attend>
  void run(const Attend &attend) {
    const int64_t width = layers_->w1.outputs;
    float *qkv = pool_.between(0, tokens_ * 3 * row_size_), *attended = pool_.between(1, tokens_ * row_size_);
    float *inner = pool_.between(2, tokens_ * width), *out = op_.out();
    qkv_.data = qkv;
    pool_.run([&](Thread &thread) {
      const float *x = op_.f32(0);
      for (const LayerWeights *layer = layers_; layer < layers_ + count_; ++layer) {
        linears(thread, x, tokens_, hidden_, {layer->attention_norm, epsilon_}, {layer->wq, layer->wk, layer->wv},
                nullptr, qkv);
        attend(thread, *layer, qkv_, attended);
        linears(thread, attended, tokens_, row_size_, {}, {layer->wo}, x, out);
        swiglu(thread, out, tokens_, hidden_, {layer->ffn_norm, epsilon_}, layer->w1, layer->w3, inner);
        linears(thread, inner, tokens_, width, {}, {layer->w2}, out, out);
        x = out;
      }
    });
  }

 private:
  Pool &pool_ = Pool::get();
  const std::unique_lock<std::recursive_mutex> alone_ = pool_.alone();
  const Op &op_;
  const int64_t tokens_, hidden_;
  const float epsilon_;
  const LayerWeights *layers_;
  int64_t count_, row_size_;
  Qkv qkv_;
};

}  // namespace

// How many threads share out the work: said once, before the first operator runs.
extern "C" void QwenSetThreads(int threads) { Pool::wanted() = threads; }

// x [T, hidden], settings, norm weight [hidden] -> [T, hidden]
QWEN_OP(QwenRmsNorm, {
  const Norm norm{op.f32(2), op.f32(1)[0]};
  Pool::get().run([&](Thread &thread) { rms_norm(thread, op.f32(0), op.dim(0, 0), op.dim(0, 1), norm, op.out()); });
})
QWEN_SHAPE(QwenRmsNorm, {shapes[0][0], shapes[0][1]})

// x [T, in] and weights, see weights_of -> [T, out]
QWEN_OP(QwenLinear, {
  const Weights weights = weights_of(op);
  Pool::get().run([&](Thread &thread) {
    linears(thread, op.f32(0), op.dim(0, 0), op.dim(0, 1), {}, {weights}, nullptr, op.out());
  });
})
QWEN_SHAPE(QwenLinear, {shapes[0][0], shapes[2][0]})

// See Layers; then slot_mapping [T] int32, block_tables [B, blocks] int32, lengths [B] int32 and, in prefill, queries
// [B] int32: how many of the T tokens are each sequence's; without it one token each -> [T, hidden]
QWEN_OP(QwenLayers, {
  Layers layers(op);
  const int slots = Layers::kInputs, tables = slots + 1, lengths = slots + 2, queries = slots + 3;
  const int64_t batch = op.dim(tables, 0);
  const std::vector<int32_t> one_each(batch, 1);
  const int32_t *of_each = queries < op.inputs() ? op.i32(queries) : one_each.data();
  layers.run([&](Thread &thread, const LayerWeights &layer, const Qkv &qkv, float *out) {
    const Cache cache{layer.keys, layer.values, op.i32(tables), op.dim(tables, 1), static_cast<int64_t>(op.f32(1)[1])};
    attend(thread, qkv, cache, op.i32(slots), op.i32(lengths), of_each, batch, layers.tokens(), out);
  });
})
QWEN_SHAPE(QwenLayers, {shapes[0][0], shapes[0][1]})

// See Layers, with T = B * S; then input_ids [B, S] (for its shape) -> [T, hidden]
QWEN_OP(QwenLayersWhole, {
  Layers layers(op);
  const int64_t batch = op.dim(Layers::kInputs, 0), tokens = layers.tokens();
  const Cache cache{{layers.own_cache(0), nullptr}, {layers.own_cache(1), nullptr}, nullptr, 0, 0};
  std::vector<int32_t> slots(tokens);
  std::iota(slots.begin(), slots.end(), 0);
  const std::vector<int32_t> lengths(batch, tokens / batch);
  layers.run([&](Thread &thread, const LayerWeights &, const Qkv &qkv, float *out) {
    attend(thread, qkv, cache, slots.data(), lengths.data(), lengths.data(), batch, tokens, out);
  });
})
QWEN_SHAPE(QwenLayersWhole, {shapes[0][0], shapes[0][1]})

}  // namespace qwen
