/* A whole block of the GPT, attention and MLP, forward and backward, in one call each.
 *
 * The same as Block in gptkit/model/gpt.py in bf16. For a small model most of a step is not arithmetic but the way
 * to it: a hundred small calls, each of which finds the caches full of something else. Here a block is one call,
 * adds what comes in while the product is still in registers, and keeps what its gradient needs in one piece of
 * memory. It needs a processor with dot products of bf16 pairs.
 */
#include "gemm.h"
#include "operations.h"

typedef struct {
  const void *weight, *bias; /* (outputs, inputs), (outputs,) or NULL */
} Layer;

typedef struct {
  int64_t B, T, C, H, F, up; /* up: outputs of the MLP's first matrix, 2 F where gated */
  int32_t centre, qk_norm, activation, threads;
  float norm_eps, qk_eps, dropout, attention_dropout;
  uint64_t seeds[3];          /* of the attention's shares, and of what each half adds */
  const float *cosine, *sine; /* (T, D), or NULL */
  const float *bias;          /* (H or 1, T, T), or NULL */
  int64_t bias_head;
  const void *attention_gain, *attention_shift, *mlp_gain, *mlp_shift;
  Layer qkv, projection, expand, contract;
} Block;

/* What the forward pass leaves for the backward pass, all (rows, …) in bf16 but the last three, in fp32 */
typedef struct {
  char *normed, *qkv, *turned, *gathered, *middle, *mlp_normed, *h, *active;
  float *stats, *head_stats, *lse;
} Saved;

static char *take(char **memory, int64_t bytes) {
  char *here = *memory;
  *memory += (bytes + 63) / 64 * 64;
  return here;
}

static Saved saved_in(const Block *b, char *memory, int64_t *size) {
  int64_t R = b->B * b->T, row = 2 * R * b->C;
  char *start = memory;
  Saved s;
  s.normed = take(&memory, row);
  s.qkv = take(&memory, 3 * row);
  s.turned = take(&memory, b->qk_norm || b->cosine ? 2 * row : 0);
  s.gathered = take(&memory, row);
  s.middle = take(&memory, row);
  s.mlp_normed = take(&memory, row);
  s.h = take(&memory, 2 * R * b->up);
  s.active = take(&memory, 2 * R * b->F);
  s.stats = (float *)take(&memory, 4 * 4 * R);
  s.head_stats = (float *)take(&memory, b->qk_norm ? 4 * 4 * R * b->H : 0);
  s.lse = (float *)take(&memory, 4 * R * b->H);
  if (size) *size = memory - start;
  return s;
}

/* Bytes that `block_forward` leaves for `block_backward` */
EXPORT int64_t block_saves(const Block *b) {
  int64_t size;
  saved_in(b, NULL, &size);
  return size;
}

#if HAS_BF16_PRODUCTS

static int64_t largest_weight(const Block *b) {
  return MAX(MAX(packed_size(3 * b->C, b->C), packed_size(b->C, b->C)),
             MAX(packed_size(b->up, b->C), packed_size(b->C, b->F)));
}

static Attention attention_of(const Block *b) {
  int64_t C = b->C, D = C / b->H, T = b->T;
  Attention a = {.B = b->B, .H = b->H, .T = T, .D = D, .bias_head = b->bias_head, .seed = b->seeds[0],
                 .dropout = b->attention_dropout, .bf16 = 1, .threads = b->threads};
  int64_t packed[3] = {3 * C * T, D, 3 * C}, own[3] = {C * T, T * D, D}, out[3] = {C * T, D, C};
  int turns = b->qk_norm || b->cosine;
  memcpy(a.q, turns ? own : packed, sizeof packed), memcpy(a.k, turns ? own : packed, sizeof packed);
  memcpy(a.v, packed, sizeof packed), memcpy(a.out, out, sizeof out);
  return a;
}

static Rows heads_of(const Block *b) { return (Rows){b->B, b->H, b->T, b->C / b->H}; }

/* Queries and keys, normalised and turned, from qkv to (B, H, T, D) each */
static void turn_heads(const Block *b, const Saved *s) {
  int64_t C = b->C, D = C / b->H, T = b->T, R = b->B * T;
  int64_t packed[3] = {3 * C * T, D, 3 * C}, own[3] = {C * T, T * D, D};
  Rows heads = heads_of(b);
  for (int part = 0; part < 2; part++) {
    const void *from = s->qkv + 2 * C * part;
    void *to = s->turned + 2 * R * C * part;
    const int64_t *strides = packed;
    if (b->qk_norm) {
      norm_forward(from, packed, &heads, NULL, NULL, to, s->head_stats + 2 * R * b->H * part, b->qk_eps, 0, 1,
                   b->threads);
      from = to, strides = own;
    }
    if (b->cosine) rotate(from, strides, &heads, b->cosine, b->sine, to, own, 0, 1, b->threads);
  }
}

/* And the gradients of these, in dqkv, back to those of qkv */
static int turn_heads_back(const Block *b, const Saved *s, char *dqkv) {
  int64_t C = b->C, D = C / b->H, T = b->T, R = b->B * T, packed[3] = {3 * C * T, D, 3 * C};
  Rows heads = heads_of(b);
  int failed = 0;
  for (int part = 0; part < 2; part++) {
    void *here = dqkv + 2 * C * part;
    if (b->cosine) rotate(here, packed, &heads, b->cosine, b->sine, here, packed, 1, 1, b->threads);
    if (b->qk_norm)
      failed |= norm_backward(s->qkv + 2 * C * part, packed, here, packed, &heads, NULL,
                              s->head_stats + 2 * R * b->H * part, NULL, here, packed, NULL, NULL, 0, 1, b->threads);
  }
  return failed;
}

/* out (R, outputs) = a (R, inputs) weight' + bias + residual, the latter after dropout of the rest */
static void apply_layer(const Block *b, const Layer *l, const void *a, void *out, int64_t inputs, int64_t outputs,
                        const void *residual, uint64_t seed, word *room) {
  int64_t R = b->B * b->T;
  int drops = residual && b->dropout > 0;
  pack_across(l->weight, outputs, inputs, room, b->threads);
  product_of(a, room, out, R, inputs, outputs, (Epilogue){1, 1, drops ? NULL : residual, l->bias}, b->threads);
  if (drops) dropout(out, residual, out, R * outputs, b->dropout, seed, 1, b->threads);
}

/* x (B, T, C) -> y, both bf16. Returns 0, or 1 where memory is not to be had. */
EXPORT int block_forward(const Block *b, const void *x, void *y, char *memory) {
  int64_t R = b->B * b->T, C = b->C, flat[3] = {0, 0, C};
  Rows rows = {1, 1, R, C};
  Saved s = saved_in(b, memory, NULL);
  word *room = aligned_alloc(64, (size_t)((largest_weight(b) * 4 + 63) / 64 * 64));
  if (!room) return 1;
  norm_forward(x, flat, &rows, b->attention_gain, b->attention_shift, s.normed, s.stats, b->norm_eps, b->centre, 1,
               b->threads);
  apply_layer(b, &b->qkv, s.normed, s.qkv, C, 3 * C, NULL, 0, room);
  int turns = b->qk_norm || b->cosine;
  if (turns) turn_heads(b, &s);
  Attention attention = attention_of(b);
  const char *q = turns ? s.turned : s.qkv, *k = turns ? s.turned + 2 * R * C : s.qkv + 2 * C;
  int failed = attention_forward(&attention, q, k, s.qkv + 4 * C, b->bias, s.gathered, s.lse);
  apply_layer(b, &b->projection, s.gathered, s.middle, C, C, x, b->seeds[1], room);
  norm_forward(s.middle, flat, &rows, b->mlp_gain, b->mlp_shift, s.mlp_normed, s.stats + 2 * R, b->norm_eps,
               b->centre, 1, b->threads);
  apply_layer(b, &b->expand, s.mlp_normed, s.h, C, b->up, NULL, 0, room);
  if (b->up == b->F)
    activation(b->activation, s.h, NULL, s.active, R * b->F, 1, b->threads);
  else
    gated(s.h, NULL, s.active, R, b->F, 1, b->threads);
  apply_layer(b, &b->contract, s.active, y, b->F, C, s.middle, b->seeds[2], room);
  free(room);
  return failed;
}

/* Where the gradients of a block's parameters go, in their own shapes and bf16; NULL where there is none */
typedef struct {
  void *attention_gain, *attention_shift, *mlp_gain, *mlp_shift;
  void *weights[4], *biases[4]; /* qkv, projection, expand, contract */
  float *bias;                  /* (threads, H or 1, T, T), zeroed, or NULL */
  int64_t bias_size;
} Gradients;

typedef struct {
  word *weight;
  float *sums;
  char *change, *dqkv, *wide, *middle; /* (R, C), (R, 3 C), (R, up), (R, C) */
} Scratch;

static char *scratch_in(const Block *b, Scratch *s) {
  int64_t R = b->B * b->T, C = b->C;
  int threads = b->threads;
  int64_t sums = MAX(MAX(gradient_room(3 * C, C, threads), gradient_room(b->up, C, threads)),
                     MAX(gradient_room(C, b->F, threads), gradient_room(C, C, threads)));
  int64_t bytes = 4 * (largest_weight(b) + sums) + 2 * R * (5 * C + b->up + b->F) + 8 * 64;
  char *memory = aligned_alloc(64, (size_t)((bytes + 63) / 64 * 64)), *next = memory;
  if (!memory) return NULL;
  s->weight = (word *)take(&next, 4 * largest_weight(b));
  s->sums = (float *)take(&next, 4 * sums);
  s->change = take(&next, 2 * R * C);
  s->dqkv = take(&next, 6 * R * C);
  s->middle = take(&next, 2 * R * C);
  s->wide = take(&next, 2 * R * MAX(b->up, b->F) + 2 * R * b->F);
  return memory;
}

/* From g (R, outputs) the gradients of a layer, and dx (R, inputs) */
static void layer_back(const Block *b, const Layer *l, const void *g, const void *x, void *dx, int64_t inputs,
                       int64_t outputs, const Gradients *to, int which, const Scratch *s) {
  int64_t R = b->B * b->T;
  weight_gradient(g, x, to->weights[which], R, outputs, inputs, s->sums, b->threads);
  if (to->biases[which]) sum_rows(g, to->biases[which], R, outputs, b->threads);
  pack_down(l->weight, outputs, inputs, s->weight);
  product_of(g, s->weight, dx, R, outputs, inputs, as_it_is, b->threads);
}

/* The gradient of what dropout let through of a half; g itself where nothing is dropped */
static const void *dropped(const Block *b, const void *g, uint64_t seed, void *room) {
  if (b->dropout == 0) return g;
  dropout(g, NULL, room, b->B * b->T * b->C, b->dropout, seed, 1, b->threads);
  return room;
}

/* dy and x (B, T, C) -> dx and the gradients of the parameters. Returns 0, or 1 where memory is not to be had. */
EXPORT int block_backward(const Block *b, const void *x, char *memory, const void *dy, void *dx,
                          const Gradients *to) {
  int64_t R = b->B * b->T, C = b->C, D = C / b->H, flat[3] = {0, 0, C};
  Rows rows = {1, 1, R, C};
  Saved s = saved_in(b, memory, NULL);
  Scratch room;
  char *all = scratch_in(b, &room);
  if (!all) return 1;
  char *da = room.wide, *dh = room.wide + 2 * R * b->F;
  const void *g = dropped(b, dy, b->seeds[2], room.change);
  layer_back(b, &b->contract, g, s.active, da, b->F, C, to, 3, &room);
  if (b->up == b->F)
    activation(b->activation, s.h, da, dh, R * b->F, 1, b->threads);
  else
    gated(s.h, da, dh, R, b->F, 1, b->threads);
  layer_back(b, &b->expand, dh, s.mlp_normed, room.change, C, b->up, to, 2, &room);
  int failed = norm_backward(s.middle, flat, room.change, flat, &rows, b->mlp_gain, s.stats + 2 * R, dy, room.middle,
                             flat, to->mlp_gain, to->mlp_shift, b->centre, 1, b->threads);
  g = dropped(b, room.middle, b->seeds[1], room.change);
  layer_back(b, &b->projection, g, s.gathered, da, C, C, to, 1, &room);
  int turns = b->qk_norm || b->cosine;
  Attention attention = attention_of(b);
  const char *q = turns ? s.turned : s.qkv, *k = turns ? s.turned + 2 * R * C : s.qkv + 2 * C;
  int64_t grad[3] = {3 * C * b->T, D, 3 * C}, joined[3] = {C * b->T, D, C};
  failed |= attention_backward(&attention, q, k, s.qkv + 4 * C, b->bias, s.gathered, da, joined, s.lse, room.dqkv,
                               room.dqkv + 2 * C, room.dqkv + 4 * C, grad, to->bias, to->bias_size);
  if (turns) failed |= turn_heads_back(b, &s, room.dqkv);
  layer_back(b, &b->qkv, room.dqkv, s.normed, room.change, C, 3 * C, to, 0, &room);
  failed |= norm_backward(x, flat, room.change, flat, &rows, b->attention_gain, s.stats, room.middle, dx, flat,
                          to->attention_gain, to->attention_shift, b->centre, 1, b->threads);
  free(all);
  return failed;
}

#else

EXPORT int block_forward(const Block *b, const void *x, void *y, char *memory) {
  (void)b, (void)x, (void)y, (void)memory;
  return 1;
}

EXPORT int block_backward(const Block *b, const void *x, char *memory, const void *dy, void *dx, const void *to) {
  (void)b, (void)x, (void)memory, (void)dy, (void)dx, (void)to;
  return 1;
}

#endif
