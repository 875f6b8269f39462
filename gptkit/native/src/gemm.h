/* Matrix products in bf16, with sums in fp32: what block.c is made of.
 *
 * A word is two bf16 numbers next to one another along the dimension that is summed over (attention_bf16.h). The
 * right-hand side is packed into panels of 64 columns, (K / 2, 64) words each, so that a tile of 6 rows by 64
 * columns stays in registers while K goes by. K is even.
 */
#ifndef GPTKIT_GEMM_H
#define GPTKIT_GEMM_H

#include "attention_bf16.h"

#if HAS_BF16_PRODUCTS

enum { COLUMNS = 64, GROUP = 48, SIDE = 8, STRIP = 32 };

static int64_t panels_of(int64_t columns) { return (columns + COLUMNS - 1) / COLUMNS; }

/* Words that `pack_across` and `pack_down` need for a weight (N, K) */
static int64_t packed_size(int64_t N, int64_t K) {
  return MAX(panels_of(N) * COLUMNS * K / 2, panels_of(K) * COLUMNS * (N + 1) / 2);
}

/* w (N, K) for x w': words along K */
static void pack_across(const void *w, int64_t N, int64_t K, word *to, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t panel = 0; panel < panels_of(N); panel++)
    for (int64_t k = 0; k < K / 2; k++)
      for (int64_t j = 0; j < COLUMNS; j++) {
        int64_t n = panel * COLUMNS + j;
        to[(panel * (K / 2) + k) * COLUMNS + j] = n < N ? word_at((const uint16_t *)w + n * K, k) : 0;
      }
}

/* Words of two rows of x (R, C), sixteen columns from c on */
INLINE uvec pair_of(const uint16_t *x, int64_t r, int64_t c, int64_t R, int64_t C) {
  uvec pair = (uvec)load_upto(x + r * C, c, C, 1) >> 16;
  if (r + 1 < R) pair |= (uvec)load_upto(x + (r + 1) * C, c, C, 1);
  return pair;
}

/* x (R, C) as words of two rows, in panels of `width` columns: (panels, R / 2, width) */
static void pack_down(const void *x, int64_t R, int64_t C, word *to, int64_t width, int threads) {
  int64_t pairs = (R + 1) / 2, whole = (C + LANES - 1) / LANES * LANES;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t r = 0; r < R; r += 2)
    for (int64_t c = 0; c < whole; c += MIN(LANES, width)) {
      uvec pair = c < C ? pair_of(x, r, c, R, C) : (uvec){0};
      memcpy(to + (c / width * pairs + r / 2) * width + c % width, &pair, (size_t)(4 * MIN(LANES, width)));
    }
}

typedef struct {
  const void *bias;     /* (N,) bf16, or NULL */
  const void *residual; /* (R, N) bf16, or NULL */
} Epilogue;

/* out (R, N) = a (R, K) b + bias + residual, b packed */
static void product_of(const void *a, const word *b, void *out, int64_t R, int64_t K, int64_t N, Epilogue more,
                       int threads) {
  int64_t panels = panels_of(N), groups = (R + GROUP - 1) / GROUP;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t item = 0; item < groups * panels; item++) {
    int64_t first = item / panels * GROUP, panel = item % panels, from = panel * COLUMNS;
    int64_t to = MIN(from + COLUMNS, N), last = MIN(first + GROUP, R);
    float tile[6 * COLUMNS];
    for (int64_t r = first; r < last; r += 6) {
      int64_t rows = MIN(6, last - r);
      words_6_4(rows, K / 2, (const uint16_t *)a + r * K, K / 2, 1, b + panel * (K / 2) * COLUMNS, COLUMNS, tile,
                COLUMNS, 0);
      for (int64_t i = 0; i < rows; i++)
        for (int64_t j = from; j < to; j += LANES) {
          vec sum = load(tile + i * COLUMNS, j - from, 0);
          if (more.bias) sum += load_upto(more.bias, j, to, 1);
          if (more.residual) sum += load_upto((const uint16_t *)more.residual + (r + i) * N, j, to, 1);
          store_upto((uint16_t *)out + (r + i) * N, j, to, sum, 1);
        }
    }
  }
}

/* Words that `weight_gradient` packs its two sides into */
static int64_t sides_size(int64_t R, int64_t N, int64_t K) {
  int64_t n = (N + LANES - 1) / LANES * LANES, k = (K + STRIP - 1) / STRIP * STRIP;
  return (R + 1) / 2 * (n + k);
}

/* out (N, K) = g' x: g (R, N), x (R, K) */
static void weight_gradient(const void *g, const void *x, void *out, int64_t R, int64_t N, int64_t K, word *room,
                            int threads) {
  int64_t pairs = (R + 1) / 2, sides = (N + SIDE - 1) / SIDE, strips = (K + STRIP - 1) / STRIP;
  word *left = room, *right = room + pairs * ((N + LANES - 1) / LANES * LANES);
  pack_down(g, R, N, left, SIDE, threads);
  pack_down(x, R, K, right, STRIP, threads);
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t item = 0; item < strips * sides; item++) {
    int64_t strip = item / sides, side = item % sides, rows = MIN(SIDE, N - side * SIDE);
    int64_t from = strip * STRIP, to = MIN(from + STRIP, K);
    float tile[SIDE * STRIP];
    words_8_2(rows, pairs, left + side * pairs * SIDE, 1, SIDE, right + strip * pairs * STRIP, STRIP, tile, STRIP, 0);
    for (int64_t i = 0; i < rows; i++)
      for (int64_t j = from; j < to; j += LANES)
        store_upto((uint16_t *)out + (side * SIDE + i) * K, j, to, load(tile + i * STRIP, j - from, 0), 1);
  }
}

/* out (C,) = the sum of the rows of g (R, C); each thread takes some columns */
static void sum_rows(const void *g, void *out, int64_t R, int64_t C, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t c = 0; c < C; c += LANES) {
    vec sum = {0};
    for (int64_t r = 0; r < R; r++) sum += load_upto((const uint16_t *)g + r * C, c, C, 1);
    store_upto(out, c, C, sum, 1);
  }
}

#endif
#endif
