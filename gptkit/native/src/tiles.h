/* Matrix products in tiles that stay in registers, fp32. */
#ifndef GPTKIT_TILES_H
#define GPTKIT_TILES_H

#include "vectors.h"

#define UNUSED __attribute__((unused)) /* in some of the files that include this */
#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (ivec4){__VA_ARGS__})
#endif

/* c[m][…] (+)= sum over k of a(m, k) b[k][…] with a(m, k) = a[m am + k ak], for n vectors of columns and `rows` <= M
 * rows: an M by n tile of vectors that stays in registers. Each sum adds its terms in the order of k, whatever the
 * tile. */
#define TILE_PRODUCT(name, M, n)                                                                              \
  UNUSED static void tile_##name(int64_t rows, int64_t K, const float *a, int64_t am, int64_t ak,          \
                                    const float *b, int64_t ldb, float *c, int64_t ldc, int add) {            \
    vec sum[M][n];                                                                                            \
    const float *from[M];                                                                                     \
    for (int m = 0; m < M; m++) {                                                                             \
      int64_t row = MIN(m, rows - 1);                                                                         \
      from[m] = a + row * am;                                                                                 \
      for (int v = 0; v < n; v++) sum[m][v] = add ? load(c + row * ldc, v * LANES, 0) : splat(0);             \
    }                                                                                                         \
    for (int64_t k = 0; k < K; k++) {                                                                         \
      vec right[n];                                                                                           \
      for (int v = 0; v < n; v++) right[v] = load(b + k * ldb, v * LANES, 0);                                 \
      for (int m = 0; m < M; m++) {                                                                           \
        vec left = splat(from[m][k * ak]);                                                                    \
        for (int v = 0; v < n; v++) sum[m][v] += left * right[v];                                             \
      }                                                                                                       \
    }                                                                                                         \
    for (int m = 0; m < M; m++)                                                                               \
      if (m < rows)                                                                                           \
        for (int v = 0; v < n; v++) store(c + m * ldc, v * LANES, sum[m][v], 0);                              \
  }                                                                                                           \
  UNUSED static void product_##name(int64_t rows, int64_t K, const float *a, int64_t am, int64_t ak,       \
                                       const float *b, int64_t ldb, float *c, int64_t ldc, int add) {         \
    for (int64_t m = 0; m < rows; m += M)                                                                     \
      tile_##name(MIN(M, rows - m), K, a + m * am, am, ak, b, ldb, c + m * ldc, ldc, add);                 \
  }

TILE_PRODUCT(1_4, 1, 4)

#if LANES == 16 /* 32 registers: a tile holds whole rows */

TILE_PRODUCT(8_1, 8, 1)
TILE_PRODUCT(8_2, 8, 2)
TILE_PRODUCT(8_3, 8, 3)
TILE_PRODUCT(6_4, 6, 4)
TILE_PRODUCT(4_6, 4, 6)
TILE_PRODUCT(3_8, 3, 8)

/* The product of `kind` (product, pair_product) for rows of n vectors */
#define BY_WIDTH(n, kind, ...)                  \
  switch (n) {                                  \
    case 1: kind##_8_1(__VA_ARGS__); break;     \
    case 2: kind##_8_2(__VA_ARGS__); break;     \
    case 3: kind##_8_3(__VA_ARGS__); break;     \
    case 4: kind##_6_4(__VA_ARGS__); break;     \
    case 6: kind##_4_6(__VA_ARGS__); break;     \
    default: kind##_3_8(__VA_ARGS__);           \
  }

/* Columns padded to a width that BY_WIDTH has */
UNUSED static int64_t padded_width(int64_t columns) {
  int64_t n = (columns + LANES - 1) / LANES;
  return (n == 5 || n == 7 ? n + 1 : n) * LANES;
}

/* c (rows, width) (+)= a (rows, K) b (K, width), for a padded width; c is contiguous */
UNUSED static void product_by_width(int64_t width, int64_t rows, int64_t K, const float *a, int64_t am, int64_t ak,
                                    const float *b, int64_t ldb, float *c, int add) {
  BY_WIDTH(width / LANES, product, rows, K, a, am, ak, b, ldb, c, width, add)
}

/* c (rows, columns) = a (rows, K) b (K, columns); columns are rounded up to whole vectors */
INLINE void product_of_columns(int64_t columns, int64_t rows, int64_t K, const float *a, int64_t am, const float *b,
                               int64_t ldb, float *c, int64_t ldc) {
  for (int64_t j = 0; j < columns; j += 2 * LANES) {
    if (j + LANES < columns)
      product_8_2(rows, K, a, am, 1, b + j, ldb, c + j, ldc, 0);
    else
      product_8_1(rows, K, a, am, 1, b + j, ldb, c + j, ldc, 0);
  }
}

/* c (rows, 64) = a (rows, K) b (K, 64), for `rows` <= 6 */
INLINE void product_of_64(int64_t rows, int64_t K, const float *a, int64_t lda, const float *b, int64_t ldb, float *c,
                          int64_t ldc) {
  if (rows == 1)
    tile_1_4(1, K, a, lda, 1, b, ldb, c, ldc, 0);
  else
    tile_6_4(rows, K, a, lda, 1, b, ldb, c, ldc, 0);
}

#else /* 16 registers, or 32 of 4 lanes: rows are multiplied in strips of a few vectors */

TILE_PRODUCT(row, 1, 8)
TILE_PRODUCT(8_1, 8, 1)
TILE_PRODUCT(4_2, 4, 2)
TILE_PRODUCT(4_3, 4, 3)
TILE_PRODUCT(6_2, 6, 2)
#if defined(__aarch64__)
TILE_PRODUCT(4_4, 4, 4)
#endif

/* c (rows, columns) (+)= a (rows, K) b (K, columns); columns are rounded up to whole vectors */
UNUSED static void product_in_strips(int64_t columns, int64_t rows, int64_t K, const float *a, int64_t am, int64_t ak,
                                     const float *b, int64_t ldb, float *c, int64_t ldc, int add) {
  int64_t left = (columns + LANES - 1) / LANES;
#define STRIPS(n, kind, unless) \
  for (; left >= n && left != unless; left -= n, b += n * LANES, c += n * LANES) \
    product_##kind(rows, K, a, am, ak, b, ldb, c, ldc, add);
#if defined(__aarch64__)
  STRIPS(4, 4_4, 5)
#endif
  STRIPS(3, 4_3, 4)
  STRIPS(2, 4_2, 0)
  STRIPS(1, 8_1, 0)
#undef STRIPS
}

UNUSED static int64_t padded_width(int64_t columns) { return (columns + LANES - 1) / LANES * LANES; }

UNUSED static void product_by_width(int64_t width, int64_t rows, int64_t K, const float *a, int64_t am, int64_t ak,
                                    const float *b, int64_t ldb, float *c, int add) {
  product_in_strips(width, rows, K, a, am, ak, b, ldb, c, width, add);
}

INLINE void product_of_columns(int64_t columns, int64_t rows, int64_t K, const float *a, int64_t am, const float *b,
                               int64_t ldb, float *c, int64_t ldc) {
  product_in_strips(columns, rows, K, a, am, 1, b, ldb, c, ldc, 0);
}

INLINE void product_of_64(int64_t rows, int64_t K, const float *a, int64_t lda, const float *b, int64_t ldb, float *c,
                          int64_t ldc) {
  if (rows == 1)
    for (int64_t j = 0; j < 64; j += 8 * LANES) tile_row(1, K, a, lda, 1, b + j, ldb, c + j, ldc, 0);
  else
    for (int64_t j = 0; j < 64; j += 2 * LANES) tile_6_2(rows, K, a, lda, 1, b + j, ldb, c + j, ldc, 0);
}

#endif

/* The first `rows` rows of x (…, D) to its transpose (D, T), the last of them repeated up to T; T and D are multiples of
 * 4 */
UNUSED static void transpose(const float *x, int64_t ldx, int64_t rows, int64_t T, int64_t D, float *to) {
  for (int64_t t = 0; t < T; t += 4) {
    const float *from[4];
    for (int i = 0; i < 4; i++) from[i] = x + MIN(t + i, rows - 1) * ldx;
    for (int64_t d = 0; d < D; d += 4) {
      vec4 a, b, c, e;
      memcpy(&a, from[0] + d, sizeof a), memcpy(&b, from[1] + d, sizeof b);
      memcpy(&c, from[2] + d, sizeof c), memcpy(&e, from[3] + d, sizeof e);
      vec4 ab = SHUFFLE(a, b, 0, 4, 1, 5), ab2 = SHUFFLE(a, b, 2, 6, 3, 7);
      vec4 ce = SHUFFLE(c, e, 0, 4, 1, 5), ce2 = SHUFFLE(c, e, 2, 6, 3, 7);
      vec4 columns[4] = {SHUFFLE(ab, ce, 0, 1, 4, 5), SHUFFLE(ab, ce, 2, 3, 6, 7), SHUFFLE(ab2, ce2, 0, 1, 4, 5),
                         SHUFFLE(ab2, ce2, 2, 3, 6, 7)};
      for (int i = 0; i < 4; i++) memcpy(to + (d + i) * T + t, &columns[i], sizeof(vec4));
    }
  }
}

#endif
