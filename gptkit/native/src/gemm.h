/* Matrix products in bf16 with sums in fp32, for block.c and muon.c.
 *
 * A pair is two bf16 numbers that are adjacent in the dimension that is summed over (attention_bf16.h). The
 * right-hand side is packed into panels of 64 columns, (K / 2, 64) pairs each, so that a tile of 6 rows by 64
 * columns stays in registers during the loop over K. K is even.
 */
#ifndef GPTKIT_GEMM_H
#define GPTKIT_GEMM_H

#include "attention_bf16.h"

#if HAS_BF16_PRODUCTS

enum { COLUMNS = 64, GROUP = 48, SIDE = LANES / 2, STRIP = 2 * LANES };

static int64_t panels_of(int64_t columns) { return (columns + COLUMNS - 1) / COLUMNS; }

/* Pairs that `pack_k` and `pack_n` store for a weight (N, K) */
static int64_t packed_size(int64_t N, int64_t K) {
  return MAX(panels_of(N) * COLUMNS * K / 2, panels_of(K) * COLUMNS * (N + 1) / 2);
}

/* One panel of w (N, K) for x w': pairs along K, (K / 2, 64) */
static void pack_panel(const uint16_t *w, int64_t N, int64_t K, int64_t panel, pair *to) {
  for (int64_t k = 0; k < K / 2; k++)
    for (int64_t n = panel * COLUMNS; n < (panel + 1) * COLUMNS; n++) *to++ = n < N ? load_pair(w + n * K, k) : 0;
}

/* w (N, K) for x w': all panels */
static void pack_k(const void *w, int64_t N, int64_t K, pair *to, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t panel = 0; panel < panels_of(N); panel++)
    pack_panel(w, N, K, panel, to + panel * (K / 2) * COLUMNS);
}

/* Pairs of two rows of x (R, C), sixteen columns from c on */
INLINE uvec row_pair(const uint16_t *x, int64_t r, int64_t c, int64_t R, int64_t C) {
  uvec packed = (uvec)load_upto(x + r * C, c, C, 1) >> 16;
  if (r + 1 < R) packed |= (uvec)load_upto(x + (r + 1) * C, c, C, 1);
  return packed;
}

/* Pairs from one panel of `width` columns to the next: a few more than it holds, as panels 4 KB apart would
 * compete for the same lines of the cache */
static int64_t pitch_of(int64_t pairs, int64_t width) { return pairs * width + LANES; }

/* Columns first … last of x (R, C) as pairs of two rows, in panels of `width` columns: (panels, R / 2, width), `pitch`
 * pairs apart. A panel begins at column `first`. */
INLINE void pack_rows(const uint16_t *x, int64_t R, int64_t C, int64_t first, int64_t last, pair *to, int64_t width,
                      int64_t pitch) {
  for (int64_t r = 0; r < R; r += 2)
    for (int64_t c = first; c < last; c += LANES) {
      uvec packed = row_pair(x, r, c, R, C);
      pair *here = to + (c - first) / width * pitch + r / 2 * width + (c - first) % width;
      memcpy(here, &packed, 4 * (size_t)MIN(LANES, width));
      if (width < LANES) memcpy(here + pitch, (pair *)&packed + width, 4 * (size_t)width);
    }
}

/* w (N, K) for x w: pairs along N */
static void pack_n(const void *w, int64_t N, int64_t K, pair *to) {
  pack_rows(w, N, K, 0, K, to, COLUMNS, (N + 1) / 2 * COLUMNS);
}

/* Applied to a sum before it is stored: alpha sum + beta add + bias */
typedef struct {
  float alpha, beta;
  const void *add, *bias; /* (R, N) and (N,), bf16, or NULL */
} Epilogue;

static const Epilogue NO_EPILOGUE = {1, 0, NULL, NULL};

enum { TILE_ROWS = 6 };

/* Up to 6 rows of out (R, N) from row r on, the columns of one panel: a (R, K) times b, packed */
INLINE void product_tile(const uint16_t *a, const pair *b, uint16_t *out, int64_t r, int64_t rows, int64_t K,
                         int64_t N, int64_t panel, const Epilogue *epilogue) {
  int64_t from = panel * COLUMNS, to = MIN(from + COLUMNS, N);
  float tile[TILE_ROWS * COLUMNS];
  pair_product_6_4(rows, K / 2, a + r * K, K / 2, 1, b + panel * (K / 2) * COLUMNS, COLUMNS, tile, COLUMNS, 0);
  for (int64_t i = 0; i < rows; i++)
    for (int64_t j = from; j < to; j += LANES) {
      vec sum = epilogue->alpha * load(tile + i * COLUMNS, j - from, 0);
      if (epilogue->bias) sum += load_upto(epilogue->bias, j, to, 1);
      if (epilogue->add) sum += epilogue->beta * load_upto((const uint16_t *)epilogue->add + (r + i) * N, j, to, 1);
      store_upto(out + (r + i) * N, j, to, sum, 1);
    }
}

/* out (R, N) = a (R, K) b, b packed */
static void product_of(const void *a, const pair *b, void *out, int64_t R, int64_t K, int64_t N, Epilogue epilogue,
                       int threads) {
  int64_t panels = panels_of(N), groups = (R + GROUP - 1) / GROUP;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t item = 0; item < groups * panels; item++) {
    int64_t first = item / panels * GROUP, panel = item % panels, last = MIN(first + GROUP, R);
    for (int64_t r = first; r < last; r += TILE_ROWS)
      product_tile(a, b, out, r, MIN(TILE_ROWS, last - r), K, N, panel, &epilogue);
  }
}

/* How `weight_gradient` distributes its work: each of `parts` sums over its own rows, in its own memory, and within
 * a part each of `groups` computes some of the columns. More parts would cost more memory traffic than they save. */
enum { ROW_CHUNK = 256, MAX_SUMS = 8 << 20 }; /* rows packed at a time; elements of all sums */

typedef struct {
  int64_t parts, groups, sums, left, right; /* sums, left, right: sizes in elements of 4 bytes */
} GradientPlan;

static int64_t sides_of(int64_t N) { return (N + SIDE - 1) / SIDE; }
static int64_t strips_of(int64_t K) { return (K + STRIP - 1) / STRIP; }

static GradientPlan gradient_plan(int64_t N, int64_t K, int threads) {
  GradientPlan s = {.sums = sides_of(N) * strips_of(K) * SIDE * STRIP,
              .left = (sides_of(N) + 1) * pitch_of(ROW_CHUNK / 2, SIDE),
              .right = strips_of(K) * pitch_of(ROW_CHUNK / 2, STRIP)};
  s.parts = MAX(1, MIN(threads, MAX_SUMS / s.sums));
  s.groups = MIN(strips_of(K), (threads + s.parts - 1) / s.parts);
  return s;
}

static int64_t gradient_workspace_size(int64_t N, int64_t K, int threads) {
  GradientPlan s = gradient_plan(N, K, threads);
  return s.parts * (s.sums + s.groups * (s.left + s.right));
}

/* Adds g' x over some rows to the sums, in tiles of SIDE rows of g' by STRIP columns of x, strips first … last */
static void add_rows(const uint16_t *g, const uint16_t *x, float *sums, int64_t rows, int64_t N, int64_t K,
                        int64_t first, int64_t last, pair *left, pair *right, int add) {
  int64_t pairs = (rows + 1) / 2, sides = sides_of(N);
  int64_t left_pitch = pitch_of(ROW_CHUNK / 2, SIDE), right_pitch = pitch_of(ROW_CHUNK / 2, STRIP);
  pack_rows(g, rows, N, 0, N, left, SIDE, left_pitch);
  pack_rows(x, rows, K, first * STRIP, MIN(last * STRIP, K), right, STRIP, right_pitch);
  for (int64_t strip = first; strip < last; strip++)
    for (int64_t side = 0; side < sides; side++)
      pair_product_8_2(SIDE, pairs, left + side * left_pitch, 1, SIDE, right + (strip - first) * right_pitch, STRIP,
                sums + (strip * sides + side) * SIDE * STRIP, STRIP, add);
}

/* out (N, K) = g' x: g (R, N), x (R, K) */
static void weight_gradient(const void *g, const void *x, void *out, int64_t R, int64_t N, int64_t K, float *workspace,
                            int threads) {
  GradientPlan s = gradient_plan(N, K, threads);
  int64_t sides = sides_of(N), strips = strips_of(K);
  int64_t share = ((R + s.parts - 1) / s.parts + 1) / 2 * 2, taken = (R + share - 1) / share;
  float *packs = workspace + s.parts * s.sums;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t item = 0; item < taken * s.groups; item++) {
    int64_t part = item % taken, group = item / taken;
    int64_t first = part * share, last = MIN(first + share, R);
    pair *left = (pair *)(packs + item * (s.left + s.right)), *right = left + s.left;
    for (int64_t r = first; r < last; r += ROW_CHUNK)
      add_rows((const uint16_t *)g + r * N, (const uint16_t *)x + r * K, workspace + part * s.sums,
                  MIN(ROW_CHUNK, last - r), N, K, group * strips / s.groups, (group + 1) * strips / s.groups, left,
                  right, r > first);
  }
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t tile = 0; tile < strips * sides; tile++) {
    int64_t strip = tile / sides, n = tile % sides * SIDE, from = strip * STRIP, to = MIN(from + STRIP, K);
    for (int64_t i = 0; i < MIN(SIDE, N - n); i++)
      for (int64_t j = from; j < to; j += LANES) {
        const float *here = workspace + tile * SIDE * STRIP + i * STRIP + j - from;
        vec sum = load(here, 0, 0);
        for (int64_t part = 1; part < taken; part++) sum += load(here + part * s.sums, 0, 0);
        store_upto((uint16_t *)out + (n + i) * K, j, to, sum, 1);
      }
  }
}

/* out (C,) = the sum of the rows of g (R, C); each thread computes some of the columns */
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
