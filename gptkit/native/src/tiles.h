/* Matrix products in tiles that stay in registers, fp32. */
#ifndef GPTKIT_TILES_H
#define GPTKIT_TILES_H

#include "vectors.h"

#define UNUSED __attribute__((unused)) /* in some of the files that include this */

/* c[m][0 … 16 n] (+)= sum over k of a(m, k) b[k][…] with a(m, k) = a[m am + k ak], for `rows` <= M rows: an M by
 * n tile of vectors that stays in registers (AVX-512 has 32). */
#define TILE_PRODUCT(M, n)                                                                                    \
  UNUSED static void tile_##M##_##n(int64_t rows, int64_t K, const float *a, int64_t am, int64_t ak,          \
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
  UNUSED static void product_##M##_##n(int64_t rows, int64_t K, const float *a, int64_t am, int64_t ak,       \
                                       const float *b, int64_t ldb, float *c, int64_t ldc, int add) {         \
    for (int64_t m = 0; m < rows; m += M)                                                                     \
      tile_##M##_##n(MIN(M, rows - m), K, a + m * am, am, ak, b, ldb, c + m * ldc, ldc, add);                 \
  }

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

TILE_PRODUCT(1, 4)
TILE_PRODUCT(8, 1)
TILE_PRODUCT(8, 2)
TILE_PRODUCT(8, 3)
TILE_PRODUCT(6, 4)
TILE_PRODUCT(4, 6)
TILE_PRODUCT(3, 8)

#endif
