/* Vectors of 4, 8 or 16 floats, in the vector extensions of GCC and Clang: one source for every processor.
 *
 * LANES is the width of the processor's registers: 16 with AVX-512, 8 with AVX2, 4 with SSE and NEON. Intrinsics stand
 * only where the extensions have no word for an instruction: minimum, maximum, selection, masks, rounding to bf16.
 * Tensors are fp32 or bf16 (argument `bf16`); arithmetic is always fp32. Functions that take `bf16` as a
 * constant are inlined, so that the branch costs nothing inside a loop. NaN propagates everywhere, so that
 * a run that diverges is noticed.
 */
#ifndef GPTKIT_VECTORS_H
#define GPTKIT_VECTORS_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif
#ifdef _OPENMP
int omp_get_thread_num(void); /* not by <omp.h>, which Apple's clang lacks */
#define THREAD omp_get_thread_num()
#else
#define THREAD 0
#endif

#define EXPORT __attribute__((visibility("default")))
#define INLINE static inline __attribute__((always_inline))
#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
typedef uint32_t uvec __attribute__((vector_size(4 * LANES)));
typedef uint16_t half_vec __attribute__((vector_size(2 * LANES)));

INLINE vec splat(float x) { return x - (vec){0}; }
INLINE uvec usplat(uint32_t x) { return x - (uvec){0}; }

#if LANES == 16
static const uvec lane_index = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#elif LANES == 8
static const uvec lane_index = {0, 1, 2, 3, 4, 5, 6, 7};
#else
static const uvec lane_index = {0, 1, 2, 3};
#endif

/* A mask of the first n lanes, for n >= 0 */
INLINE ivec lanes_below(int64_t n) { return (ivec)lane_index < (int32_t)MIN(n, LANES); }

/* a where the mask is all ones, b where it is 0 */
INLINE vec choose(ivec mask, vec a, vec b) {
#if LANES == 8
  return (vec)_mm256_blendv_ps((__m256)b, (__m256)a, (__m256)mask);
#else
  return (vec)(((ivec)a & mask) | ((ivec)b & ~mask));
#endif
}

/* x, rounded: the product that it is must not be fused with a sum that follows, as in earlier versions */
INLINE vec rounded(vec x) {
#if LANES > 4
  __asm__("" : "+x"(x));
#endif
  return x;
}

/* a b + c with one rounding where the processor can; c is not fused with a product of its own */
INLINE vec fused(vec a, vec b, vec c) {
#if LANES == 16
  return (vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif LANES == 8 && defined(__FMA__)
  return (vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

INLINE uint16_t to_bf16(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  if (x != x) return 0x7fc0;
  return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

INLINE float from_bf16(uint16_t x) {
  uint32_t bits = (uint32_t)x << 16;
  float out;
  memcpy(&out, &bits, 4);
  return out;
}

INLINE float get(const void *p, int64_t i, int bf16) {
  return bf16 ? from_bf16(((const uint16_t *)p)[i]) : ((const float *)p)[i];
}

INLINE void put(void *p, int64_t i, float x, int bf16) {
  if (bf16)
    ((uint16_t *)p)[i] = to_bf16(x);
  else
    ((float *)p)[i] = x;
}

INLINE const void *at(const void *p, int64_t i, int bf16) { return (const char *)p + i * (bf16 ? 2 : 4); }
INLINE void *at_(void *p, int64_t i, int bf16) { return (char *)p + i * (bf16 ? 2 : 4); }

INLINE vec load(const void *p, int64_t i, int bf16) {
  vec out;
  if (bf16) {
#if defined(__AVX512BW__)
    __m256i words = _mm256_loadu_si256((const __m256i *)((const uint16_t *)p + i));
    return (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(words), 16);
#endif
    half_vec h;
    memcpy(&h, (const uint16_t *)p + i, sizeof h);
    out = (vec)(__builtin_convertvector(h, uvec) << 16);
  } else {
    memcpy(&out, (const float *)p + i, sizeof out);
  }
  return out;
}

INLINE void store(void *p, int64_t i, vec x, int bf16) {
  if (!bf16) {
    memcpy((float *)p + i, &x, sizeof x);
    return;
  }
#if defined(__AVX512BF16__)
  __m256bh h = _mm512_cvtneps_pbh((__m512)x);
#else
  uvec bits = (uvec)x;
  bits = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  half_vec h = __builtin_convertvector((uvec)choose(x == x, (vec)bits, (vec)usplat(0x7fc0)), half_vec);
#endif
  memcpy((uint16_t *)p + i, &h, sizeof h);
}

/* Copies fewer bytes than a vector has, in pieces of powers of two */
INLINE void copy_part(void *to, const void *from, int64_t bytes) {
  char *t = to;
  const char *f = from;
#define PIECE(size) \
  if (size < 4 * LANES && bytes & size) memcpy(t, f, size), t += size, f += size;
  PIECE(32) PIECE(16) PIECE(8) PIECE(4) PIECE(2)
#undef PIECE
}

/* The limit for load_upto and store_upto in rows of whole vectors, where a constant spares the comparison */
#define WHOLE INT64_MAX

/* load and store for elements below n only: others are loaded as 0, and not stored */
INLINE vec load_upto(const void *p, int64_t i, int64_t n, int bf16) {
  if (n == WHOLE || i + LANES <= n) return load(p, i, bf16);
  if (i >= n) return splat(0);
#if defined(__AVX512BW__) && defined(__AVX512VL__)
  __mmask16 mask = (__mmask16)((1u << (n - i)) - 1);
  if (!bf16) return (vec)_mm512_maskz_loadu_ps(mask, (const float *)p + i);
  __m256i words = _mm256_maskz_loadu_epi16(mask, (const uint16_t *)p + i);
  return (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(words), 16);
#endif
#if LANES == 8
  if (!bf16) return (vec)_mm256_maskload_ps((const float *)p + i, (__m256i)lanes_below(n - i));
#endif
  float part[LANES] = {0};
  copy_part(part, at(p, i, bf16), (n - i) * (bf16 ? 2 : 4));
  return load(part, 0, bf16);
}

INLINE void store_upto(void *p, int64_t i, int64_t n, vec x, int bf16) {
  if (n == WHOLE || i + LANES <= n) {
    store(p, i, x, bf16);
    return;
  }
  if (i >= n) return;
#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VL__)
  __mmask16 mask = (__mmask16)((1u << (n - i)) - 1);
  if (bf16)
    _mm256_mask_storeu_epi16((uint16_t *)p + i, mask, (__m256i)_mm512_cvtneps_pbh((__m512)x));
  else
    _mm512_mask_storeu_ps((float *)p + i, mask, (__m512)x);
  return;
#endif
#if LANES == 8
  if (!bf16) {
    _mm256_maskstore_ps((float *)p + i, (__m256i)lanes_below(n - i), (__m256)x);
    return;
  }
#endif
  float part[LANES];
  store(part, 0, x, bf16);
  copy_part(at_(p, i, bf16), part, (n - i) * (bf16 ? 2 : 4));
}

/* Sum of all lanes, half onto half */
typedef float vec8 __attribute__((vector_size(32)));
typedef float vec4 __attribute__((vector_size(16)));
typedef int32_t ivec4 __attribute__((vector_size(16)));

INLINE float sum_of(vec x) {
#if LANES == 16
  vec8 a, b;
  memcpy(&a, &x, sizeof a), memcpy(&b, (char *)&x + sizeof a, sizeof b);
  a += b;
#else
  vec a = x;
#endif
  vec4 c;
  memcpy(&c, &a, sizeof c);
#if LANES > 4
  vec4 d;
  memcpy(&d, (char *)&a + sizeof c, sizeof d);
  c += d;
#endif
  return (c[0] + c[2]) + (c[1] + c[3]);
}

/* Larger of two numbers; b where one is NaN */
INLINE vec larger(vec a, vec b) {
#if LANES == 16
  return (vec)_mm512_max_ps((__m512)a, (__m512)b);
#elif LANES == 8
  return (vec)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return choose(a > b, a, b);
#endif
}

INLINE vec smaller(vec a, vec b) {
#if LANES == 16
  return (vec)_mm512_min_ps((__m512)a, (__m512)b);
#elif LANES == 8
  return (vec)_mm256_min_ps((__m256)a, (__m256)b);
#else
  return choose(a < b, a, b);
#endif
}

INLINE float largest_of(vec x) {
#if LANES == 16
  return _mm512_reduce_max_ps((__m512)x);
#else
  vec4 top;
  memcpy(&top, &x, sizeof top);
#if LANES > 4
  vec4 other;
  memcpy(&other, (char *)&x + sizeof top, sizeof other);
  ivec4 mask = top > other;
  top = (vec4)(((ivec4)top & mask) | ((ivec4)other & ~mask));
#endif
  return MAX(MAX(top[0], top[1]), MAX(top[2], top[3]));
#endif
}

/* e^x to 2 units in the last place: 2^n times a polynomial of degree 6 on [-ln 2 / 2, ln 2 / 2].
 * Below -87 it is e^-87, nearly 0; above 88, e^88. NaN propagates: it is the second argument of each call. */
INLINE vec vexp(vec x) {
  x = smaller(splat(88.0f), larger(splat(-87.0f), x));
  vec shifted = x * 1.44269504f + 12582912.0f; /* 1.5 2^23: adding it rounds to a whole number */
  vec n = shifted - 12582912.0f;
  vec r = (x - n * 0.693145752f) - n * 1.42860677e-6f; /* ln 2 in two parts */
  vec y = splat(1.3888889e-3f);
  y = y * r + 8.3333333e-3f;
  y = y * r + 4.1666668e-2f;
  y = y * r + 0.16666667f;
  y = y * r + 0.5f;
  y = y * r + 1.0f;
  y = y * r + 1.0f;
  ivec exponent = ((ivec)shifted - 0x4b400000 + 127) << 23; /* 0x4b400000: the bits of 1.5 2^23 */
  return y * (vec)exponent;
}

/* A 32-bit hash per lane: decides which elements dropout keeps. Both passes compute it from the seed. */
INLINE uvec mix(uvec x, uint32_t key) {
  x ^= x >> 16;
  x *= 0x7feb352d;
  x ^= key;
  x ^= x >> 15;
  x *= 0x846ca68b;
  return x ^ (x >> 16);
}

/* The two hash keys of row number `row` of a dropout with this seed (splitmix64) */
INLINE void row_keys(uint64_t seed, uint64_t row, uint32_t keys[2]) {
  uint64_t z = seed + (row + 1) * 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  z ^= z >> 31;
  keys[0] = (uint32_t)z;
  keys[1] = (uint32_t)(z >> 32);
}

/* Factors of the elements of a row from j on: `scale`, 1 / (1 - p), where kept, 0 where dropped */
INLINE vec dropout_factor(const uint32_t keys[2], uint32_t j, uint32_t threshold, float scale) {
  uvec hash = mix((lane_index + j) ^ keys[0], keys[1]);
#if LANES == 16
  return (vec)_mm512_maskz_mov_ps(_mm512_cmpge_epu32_mask((__m512i)hash, (__m512i)usplat(threshold)),
                                  (__m512)splat(scale));
#else
  return (vec)((ivec)splat(scale) & (ivec)(hash >= threshold));
#endif
}

INLINE uint32_t dropout_threshold(float p) {
  double wanted = (double)p * 4294967296.0;
  return wanted >= 4294967295.0 ? 4294967295u : (uint32_t)wanted;
}

#endif
