// Vectors of floats as wide as the machine's registers, by the compiler's vector extension: one source for AVX-512,
// AVX2 and everything else.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace qwen {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float vec __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef float half_vec __attribute__((vector_size(2 * kLanes), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

inline vec load(const float *p) { return *reinterpret_cast<const vec *>(p); }
inline void store(float *p, vec v) { *reinterpret_cast<vec *>(p) = v; }
inline vec splat(float x) { return x - vec{}; }
inline vec max(vec a, vec b) { return a > b ? a : b; }

// kLanes bytes as integers, unsigned or signed. The compiler's own conversion takes a byte at a time.
inline ivec load_bytes(const uint8_t *p) {
#if defined(__AVX512F__)
  return reinterpret_cast<ivec>(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p))));
#elif defined(__AVX2__)
  return reinterpret_cast<ivec>(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(p))));
#else
  ivec wide;
  for (int i = 0; i < kLanes; ++i) wide[i] = p[i];
  return wide;
#endif
}

inline ivec load_bytes(const int8_t *p) {
#if defined(__AVX512F__)
  return reinterpret_cast<ivec>(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p))));
#elif defined(__AVX2__)
  return reinterpret_cast<ivec>(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(p))));
#else
  ivec wide;
  for (int i = 0; i < kLanes; ++i) wide[i] = p[i];
  return wide;
#endif
}

// kLanes float16 numbers as float32.
inline vec load_half(const uint16_t *p) {
#if defined(__AVX512F__)
  return reinterpret_cast<vec>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p))));
#elif defined(__AVX2__) && defined(__F16C__)
  return reinterpret_cast<vec>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p))));
#else
  ivec bits, signs;
  for (int i = 0; i < kLanes; ++i) {
    bits[i] = (p[i] & 0x7fff) << 13;
    signs[i] = (p[i] & 0x8000) << 16;
  }
  // The exponent counts from another place: a product puts that right, for denormal numbers too; not for infinity.
  vec magnitude;
  std::memcpy(&magnitude, &bits, sizeof(bits));
  magnitude *= 0x1p112f;
  std::memcpy(&bits, &magnitude, sizeof(bits));
  bits |= signs;
  std::memcpy(&magnitude, &bits, sizeof(bits));
  return magnitude;
#endif
}

// kLanes bfloat16 numbers as float32, of which they are the upper half.
inline vec load_bfloat16(const uint16_t *p) {
#if defined(__AVX512F__)
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
  return reinterpret_cast<vec>(_mm512_slli_epi32(wide, 16));
#elif defined(__AVX2__)
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
  return reinterpret_cast<vec>(_mm256_slli_epi32(wide, 16));
#else
  ivec bits;
  for (int i = 0; i < kLanes; ++i) bits[i] = static_cast<int32_t>(static_cast<uint32_t>(p[i]) << 16);
  return reinterpret_cast<vec>(bits);
#endif
}

inline vec to_float(ivec v) { return __builtin_convertvector(v, vec); }

inline float sum(vec v) {
  half_vec halves[2];
  std::memcpy(halves, &v, sizeof(v));
  const half_vec s = halves[0] + halves[1];
  float total = 0;
  for (int i = 0; i < kLanes / 2; ++i) total += s[i];
  return total;
}

// Of the numbers that stand in N vectors below each other, makes the columns rows: N a power of two up to kLanes. Vector i
// then holds column i, followed by columns i + N, i + 2 N, ... Source: Eklundh, "A Fast Computer Method for Matrix
// Transposing", IEEE Transactions on Computers, 1972.
template <int N>
inline void transpose(vec (&rows)[N]) {
  for (int step = 1; step < N; step *= 2) {
    ivec low, high;
    for (int i = 0; i < kLanes; ++i) {
      low[i] = i & step ? kLanes + i - step : i;
      high[i] = i & step ? kLanes + i : i + step;
    }
    for (int i = 0; i < N; ++i) {
      if (i & step) continue;
      const vec a = rows[i], b = rows[i + step];
      rows[i] = __builtin_shuffle(a, b, low);
      rows[i + step] = __builtin_shuffle(a, b, high);
    }
  }
}

// exp within 2 units in the last place; 0 below -80, where products of the result would be denormal numbers, which a
// CPU takes a hundred times longer for.
inline vec exp(vec input) {
  vec x = max(input, splat(-80.0f));
  x = x < splat(88.0f) ? x : splat(88.0f);
  const vec magic = splat(12582912.0f);  // 1.5 * 2**23: adding it rounds to the nearest integer
  const vec n = (x * 1.44269504f + magic) - magic;
  const vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  vec p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const ivec bits = (__builtin_convertvector(n, ivec) + 127) << 23;
  vec scale;
  std::memcpy(&scale, &bits, sizeof(scale));
  return input < splat(-80.0f) ? vec{} : p * scale;
}

inline float dot(const float *a, const float *b, int64_t n) {
  vec even{}, odd{};
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    even += load(a + i) * load(b + i);
    odd += load(a + i + kLanes) * load(b + i + kLanes);
  }
  float tail = 0;
  for (; i < n; ++i) tail += a[i] * b[i];
  return sum(even + odd) + tail;
}

}  // namespace qwen
