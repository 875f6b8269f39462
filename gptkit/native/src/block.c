/* A whole block of the GPT, attention and MLP, forward and backward, in one call each.
 *
 * Computes what Block in gptkit/model/gpt.py does, in bf16. With a small model most of a step is not arithmetic but
 * overhead: a hundred small calls, each with cold caches. Here a block is one call, adds the residual while the
 * product is still in registers, and saves what the backward pass needs in one allocation. It needs a processor
 * with dot products of bf16 pairs.
 */
#include "gemm.h"
#include "operations.h"

typedef struct {
  const void *weight, *bias; /* of a linear layer (outputs, inputs), (outputs,); of a norm (C,), (C,); or NULL */
} Layer;

typedef struct {
  int64_t B, T, C, H, F, up_width; /* up_width: outputs of mlp_up, F or, for swiglu, 2 F */
  int32_t layer_norm, qk_norm, activation, threads;
  float norm_eps, qk_eps, dropout, attention_dropout;
  uint64_t seeds[3];          /* dropout of the attention weights, of the attention's and of the MLP's output */
  const float *cosine, *sine; /* (T, D), or NULL */
  const float *bias;          /* (H or 1, T, T), or NULL */
  int64_t bias_head;
  Layer attention_norm, attention_qkv, attention_projection, mlp_norm, mlp_up, mlp_projection;
} Block;

/* Saved by the forward pass for the backward pass: (rows, …) in bf16, the last three in fp32 */
typedef struct {
  char *normed, *qkv, *rotated, *attended, *middle, *mlp_normed, *h, *active;
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
  s.rotated = take(&memory, b->qk_norm || b->cosine ? 2 * row : 0);
  s.attended = take(&memory, row);
  s.middle = take(&memory, row);
  s.mlp_normed = take(&memory, row);
  s.h = take(&memory, 2 * R * b->up_width);
  s.active = take(&memory, 2 * R * b->F);
  s.stats = (float *)take(&memory, 4 * 4 * R);
  s.head_stats = (float *)take(&memory, b->qk_norm ? 4 * 4 * R * b->H : 0);
  s.lse = (float *)take(&memory, 4 * R * b->H);
  if (size) *size = memory - start;
  return s;
}

/* Bytes that `block_forward` saves for `block_backward` */
EXPORT int64_t block_saved_bytes(const Block *b) {
  int64_t size;
  saved_in(b, NULL, &size);
  return size;
}

#if HAS_BF16_PRODUCTS

static int64_t largest_weight(const Block *b) {
  return MAX(MAX(packed_size(3 * b->C, b->C), packed_size(b->C, b->C)),
             MAX(packed_size(b->up_width, b->C), packed_size(b->C, b->F)));
}

static Attention attention_of(const Block *b) {
  int64_t C = b->C, D = C / b->H, T = b->T;
  Attention a = {.B = b->B, .H = b->H, .T = T, .D = D, .bias_head = b->bias_head, .seed = b->seeds[0],
                 .dropout = b->attention_dropout, .bf16 = 1, .threads = b->threads};
  int64_t packed[3] = {3 * C * T, D, 3 * C}, own[3] = {C * T, T * D, D}, out[3] = {C * T, D, C};
  int separate_qk = b->qk_norm || b->cosine;
  memcpy(a.q, separate_qk ? own : packed, sizeof packed), memcpy(a.k, separate_qk ? own : packed, sizeof packed);
  memcpy(a.v, packed, sizeof packed), memcpy(a.out, out, sizeof out);
  return a;
}

static Rows heads_of(const Block *b) { return (Rows){b->B, b->H, b->T, b->C / b->H}; }

/* Normalizes and rotates queries and keys: from qkv to (B, H, T, D) each */
static void rotate_heads(const Block *b, const Saved *s) {
  int64_t C = b->C, D = C / b->H, T = b->T, R = b->B * T;
  int64_t packed[3] = {3 * C * T, D, 3 * C}, own[3] = {C * T, T * D, D};
  Rows heads = heads_of(b);
  for (int part = 0; part < 2; part++) {
    const void *from = s->qkv + 2 * C * part;
    void *to = s->rotated + 2 * R * C * part;
    const int64_t *strides = packed;
    if (b->qk_norm) {
      norm_forward(from, packed, &heads, NULL, NULL, to, s->head_stats + 2 * R * b->H * part, b->qk_eps, 0, 1,
                   b->threads);
      from = to, strides = own;
    }
    if (b->cosine) rotate(from, strides, &heads, b->cosine, b->sine, to, own, 0, 1, b->threads);
  }
}

/* The gradient: from those of normalized and rotated queries and keys, in dqkv, to those of qkv, in place */
static int rotate_heads_backward(const Block *b, const Saved *s, char *dqkv) {
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

/* out (R, outputs) = dropout(a (R, inputs) weight' + bias) + residual; no dropout without a residual */
static void apply_layer(const Block *b, const Layer *l, const void *a, void *out, int64_t inputs, int64_t outputs,
                        const void *residual, uint64_t seed, pair *packed_weight) {
  int64_t R = b->B * b->T;
  int with_dropout = residual && b->dropout > 0;
  pack_k(l->weight, outputs, inputs, packed_weight, b->threads);
  Epilogue epilogue = {1, 1, with_dropout ? NULL : residual, l->bias};
  product_of(a, packed_weight, out, R, inputs, outputs, epilogue, b->threads);
  if (with_dropout) dropout(out, residual, out, R * outputs, b->dropout, seed, 1, b->threads);
}

/* x (B, T, C) -> y, both bf16. Returns 0, or 1 if memory cannot be allocated. */
EXPORT int block_forward(const Block *b, const void *x, void *y, char *memory) {
  int64_t R = b->B * b->T, C = b->C, flat[3] = {0, 0, C};
  Rows rows = {1, 1, R, C};
  Saved s = saved_in(b, memory, NULL);
  pair *packed_weight = aligned_alloc(64, (size_t)((largest_weight(b) * 4 + 63) / 64 * 64));
  if (!packed_weight) return 1;
  norm_forward(x, flat, &rows, b->attention_norm.weight, b->attention_norm.bias, s.normed, s.stats, b->norm_eps,
               b->layer_norm, 1, b->threads);
  apply_layer(b, &b->attention_qkv, s.normed, s.qkv, C, 3 * C, NULL, 0, packed_weight);
  int separate_qk = b->qk_norm || b->cosine;
  if (separate_qk) rotate_heads(b, &s);
  Attention attention = attention_of(b);
  const char *q = separate_qk ? s.rotated : s.qkv, *k = separate_qk ? s.rotated + 2 * R * C : s.qkv + 2 * C;
  int failed = attention_forward(&attention, q, k, s.qkv + 4 * C, b->bias, s.attended, s.lse);
  apply_layer(b, &b->attention_projection, s.attended, s.middle, C, C, x, b->seeds[1], packed_weight);
  norm_forward(s.middle, flat, &rows, b->mlp_norm.weight, b->mlp_norm.bias, s.mlp_normed, s.stats + 2 * R, b->norm_eps,
               b->layer_norm, 1, b->threads);
  apply_layer(b, &b->mlp_up, s.mlp_normed, s.h, C, b->up_width, NULL, 0, packed_weight);
  if (b->up_width == b->F)
    activation(b->activation, s.h, NULL, s.active, R * b->F, 1, b->threads);
  else
    gated(s.h, NULL, s.active, R, b->F, 1, b->threads);
  apply_layer(b, &b->mlp_projection, s.active, y, b->F, C, s.middle, b->seeds[2], packed_weight);
  free(packed_weight);
  return failed;
}

/* Gradients of one layer, in its own shapes and bf16; NULL where the layer has no such parameter */
typedef struct {
  void *weight, *bias;
} LayerGradients;

typedef struct {
  LayerGradients attention_norm, attention_qkv, attention_projection, mlp_norm, mlp_up, mlp_projection;
  float *bias; /* of the attention scores: (threads, H or 1, T, T), zeroed, or NULL */
  int64_t bias_size;
} Gradients;

typedef struct {
  pair *weight;
  float *sums;
  char *change, *dqkv, *wide, *middle; /* (R, C), (R, 3 C), (R, up), (R, C) */
} Workspace;

static char *workspace_in(const Block *b, Workspace *s) {
  int64_t R = b->B * b->T, C = b->C;
  int threads = b->threads;
  int64_t sums = MAX(MAX(gradient_workspace_size(3 * C, C, threads), gradient_workspace_size(b->up_width, C, threads)),
                     MAX(gradient_workspace_size(C, b->F, threads), gradient_workspace_size(C, C, threads)));
  int64_t bytes = 4 * (largest_weight(b) + sums) + 2 * R * (5 * C + b->up_width + b->F) + 8 * 64;
  char *memory = aligned_alloc(64, (size_t)((bytes + 63) / 64 * 64)), *next = memory;
  if (!memory) return NULL;
  s->weight = (pair *)take(&next, 4 * largest_weight(b));
  s->sums = (float *)take(&next, 4 * sums);
  s->change = take(&next, 2 * R * C);
  s->dqkv = take(&next, 6 * R * C);
  s->middle = take(&next, 2 * R * C);
  s->wide = take(&next, 2 * R * MAX(b->up_width, b->F) + 2 * R * b->F);
  return memory;
}

/* From g (R, outputs), the gradient of a layer's output: the gradients of its parameters, and dx (R, inputs) */
static void layer_backward(const Block *b, const Layer *l, const void *g, const void *x, void *dx, int64_t inputs,
                       int64_t outputs, const LayerGradients *to, const Workspace *s) {
  int64_t R = b->B * b->T;
  weight_gradient(g, x, to->weight, R, outputs, inputs, s->sums, b->threads);
  if (to->bias) sum_rows(g, to->bias, R, outputs, b->threads);
  pack_n(l->weight, outputs, inputs, s->weight);
  product_of(g, s->weight, dx, R, outputs, inputs, NO_EPILOGUE, b->threads);
}

/* The gradient before dropout, in `out`; g itself if there is no dropout */
static const void *dropout_gradient(const Block *b, const void *g, uint64_t seed, void *out) {
  if (b->dropout == 0) return g;
  dropout(g, NULL, out, b->B * b->T * b->C, b->dropout, seed, 1, b->threads);
  return out;
}

/* dy and x (B, T, C) -> dx and the gradients of the parameters. Returns 0, or 1 if memory cannot be allocated. */
EXPORT int block_backward(const Block *b, const void *x, char *saved, const void *dy, void *dx,
                          const Gradients *to) {
  int64_t R = b->B * b->T, C = b->C, D = C / b->H, flat[3] = {0, 0, C};
  Rows rows = {1, 1, R, C};
  Saved s = saved_in(b, saved, NULL);
  Workspace w;
  char *memory = workspace_in(b, &w);
  if (!memory) return 1;
  char *da = w.wide, *dh = w.wide + 2 * R * b->F;
  const void *g = dropout_gradient(b, dy, b->seeds[2], w.change);
  layer_backward(b, &b->mlp_projection, g, s.active, da, b->F, C, &to->mlp_projection, &w);
  if (b->up_width == b->F)
    activation(b->activation, s.h, da, dh, R * b->F, 1, b->threads);
  else
    gated(s.h, da, dh, R, b->F, 1, b->threads);
  layer_backward(b, &b->mlp_up, dh, s.mlp_normed, w.change, C, b->up_width, &to->mlp_up, &w);
  int failed = norm_backward(s.middle, flat, w.change, flat, &rows, b->mlp_norm.weight, s.stats + 2 * R, dy, w.middle,
                             flat, to->mlp_norm.weight, to->mlp_norm.bias, b->layer_norm, 1, b->threads);
  g = dropout_gradient(b, w.middle, b->seeds[1], w.change);
  layer_backward(b, &b->attention_projection, g, s.attended, da, C, C, &to->attention_projection, &w);
  int separate_qk = b->qk_norm || b->cosine;
  Attention attention = attention_of(b);
  const char *q = separate_qk ? s.rotated : s.qkv, *k = separate_qk ? s.rotated + 2 * R * C : s.qkv + 2 * C;
  int64_t grad[3] = {3 * C * b->T, D, 3 * C}, joined[3] = {C * b->T, D, C};
  failed |= attention_backward(&attention, q, k, s.qkv + 4 * C, b->bias, s.attended, da, joined, s.lse, w.dqkv,
                               w.dqkv + 2 * C, w.dqkv + 4 * C, grad, to->bias, to->bias_size);
  if (separate_qk) failed |= rotate_heads_backward(b, &s, w.dqkv);
  layer_backward(b, &b->attention_qkv, w.dqkv, s.normed, w.change, C, 3 * C, &to->attention_qkv, &w);
  failed |= norm_backward(x, flat, w.change, flat, &rows, b->attention_norm.weight, s.stats, w.middle, dx, flat,
                          to->attention_norm.weight, to->attention_norm.bias, b->layer_norm, 1, b->threads);
  free(memory);
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
