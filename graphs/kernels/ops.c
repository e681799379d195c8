// See ops.h. Operators keep ONNX Runtime's names and domain, so that model files are ordinary: ONNX Runtime looks among custom
// operators first and so finds ours, and without us its own.
#include "ops.h"

#include <stdlib.h>
#include <string.h>

#include "op.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#endif

// The C API version whose OrtCustomOp ort.h describes.
enum { VERSION = 22, OPS = 5 };

typedef struct {
  gk_op op; // first, so that a gk_op * is one of these
  const gk_kind *kind;
  int processor;
  gk_packer *packer; // null: weights stay where they are
  int *quantized;    // of the set
} own_op;

struct gk_ops {
  void *contrib, *own; // the domains com.microsoft and glimpse
  own_op ops[OPS];
  int count;
  gk_packer packer;
  int pack, quantized;
};

int gk_op_processor(const gk_op *op) { return ((const own_op *)op)->processor; }

gk_packer *gk_op_packer(const gk_op *op) { return ((const own_op *)op)->packer; }

void gk_op_set_quantized(const gk_op *op) { *((const own_op *)op)->quantized = 1; }
const int *gk_op_quantized(const gk_op *op) { return ((const own_op *)op)->quantized; }

int64_t gk_elements(const gk_tensor *t) {
  if (!t->data) return 0;
  int64_t count = 1;
  for (size_t i = 0; i < t->rank; i++) count *= t->dims[i];
  return count;
}

#if defined(__x86_64__)

// The kernel's permission to keep tile registers for this process (arch_prctl(2)).
static int tiles_allowed(void) {
#if defined(__linux__)
  enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
  return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
#else
  return 0;
#endif
}

int gk_processor(void) {
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512vl") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vnni"))
    return 0;
  int has = GK_HAS_VNNI;
  unsigned a, b, c, d;
  enum { BF16 = 1 << 22, TILE = 1 << 24, INT8 = 1 << 25 };
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & BF16) && (d & TILE) && (d & INT8) && __builtin_cpu_supports("avx512bf16") &&
      tiles_allowed())
    has |= GK_HAS_AMX;
  return has;
}

#else

int gk_processor(void) { return 0; }

#endif

static const gk_kind *kind(const gk_op *op) { return ((const own_op *)op)->kind; }
static const char *name(const gk_op *op) { return kind(op)->name; }
static const char *provider(const gk_op *op) { return (void)op, "CPUExecutionProvider"; }
static int input_type(const gk_op *op, size_t i) { return kind(op)->inputs[i]; }
static size_t input_count(const gk_op *op) { return kind(op)->input_count; }
static int input_characteristic(const gk_op *op, size_t i) { return kind(op)->optional >> i & 1 ? GK_OPTIONAL : GK_REQUIRED; }
static int output_type(const gk_op *op, size_t i) { return (void)op, (void)i, GK_FLOAT; }
static size_t output_count(const gk_op *op) { return kind(op)->output_count; }
static int required(const gk_op *op, size_t i) { return (void)op, (void)i, GK_REQUIRED; }
static int default_memory(const gk_op *op, size_t i) { return (void)op, (void)i, 0; }
static int one(const gk_op *op) { return (void)op, 1; }
static int any_version(const gk_op *op) { return (void)op, 1 << 30; }
static size_t no_map(int **inputs, int **outputs) { return *inputs = NULL, *outputs = NULL, 0; }
static void free_map(int *inputs, int *outputs) { (void)inputs, (void)outputs; }

static void define(own_op *o, const gk_kind *kind) {
  o->kind = kind;
  o->op = (gk_op){
      .version = VERSION, .get_name = name, .get_provider = provider,
      .get_input_type = input_type, .get_input_count = input_count, .get_input_characteristic = input_characteristic,
      .get_output_type = output_type, .get_output_count = output_count, .get_output_characteristic = required,
      .get_input_memory_type = default_memory, .get_variadic_input_min = one, .get_variadic_input_homogeneous = one,
      .get_variadic_output_min = one, .get_variadic_output_homogeneous = one,
      .create_kernel_v2 = kind->create, .compute_v2 = kind->compute, .destroy = kind->destroy,
      .get_start_version = one, .get_end_version = any_version,
      .get_may_inplace = no_map, .release_may_inplace = free_map, .get_alias_map = no_map, .release_alias_map = free_map,
  };
}

// A status as a message of ours.
static char *message(gk_api api, void *status) {
  enum { GET_MESSAGE = 2 };
  if (!status) return NULL;
  char *text = strdup(GK_CALL(GET_MESSAGE, const char *(*)(const void *))(status));
  GK_CALL(GK_ReleaseStatus, void (*)(void *))(status);
  return text;
}

// Makes a domain of the operators kinds[0..count−1] and offers it.
static char *offer(gk_api api, void *session_options, int processor, gk_ops *set, const char *name, void **domain,
                   const gk_kind *const *kinds, int count) {
  char *why = message(api, GK_CALL(GK_CreateCustomOpDomain, void *(*)(const char *, void **))(name, domain));
  for (int i = 0; i < count && !why; i++) {
    own_op *o = &set->ops[set->count++];
    define(o, kinds[i]);
    o->processor = processor;
    o->quantized = &set->quantized;
    o->packer = set->pack ? &set->packer : NULL;
    why = message(api, GK_CALL(GK_CustomOpDomain_Add, void *(*)(void *, const gk_op *))(*domain, &o->op));
  }
  if (!why) why = message(api, GK_CALL(GK_AddCustomOpDomain, void *(*)(void *, void *))(session_options, *domain));
  return why;
}

char *gk_ops_register(const void *const *api, void *session_options, int processor, int pack, gk_ops **out) {
  gk_ops *set = calloc(1, sizeof *set);
  if (!set) return strdup("no memory");
  gk_packer_init(&set->packer);
  set->pack = pack;
  char *why = NULL;
#if defined(__x86_64__)
  if (processor & GK_HAS_VNNI) {
    const gk_kind *const contrib[] = {&gk_nbits_kind, &gk_attention_kind, &gk_open_attention_kind};
    const gk_kind *const own[] = {&gk_rows_kind, &gk_rows_bias_kind};
    why = offer(api, session_options, processor, set, "com.microsoft", &set->contrib, contrib, processor & GK_HAS_AMX ? 3 : 1);
    if (!why) why = offer(api, session_options, processor, set, "glimpse", &set->own, own, 2);
  }
#endif
  if (why) {
    gk_ops_free(api, set);
    return why;
  }
  *out = set;
  return NULL;
}

void gk_ops_pack(gk_ops *ops) { gk_packer_run(&ops->packer); }
void gk_ops_stop(gk_ops *ops) { gk_packer_stop(&ops->packer); }

void gk_ops_free(const void *const *api, gk_ops *ops) {
  if (!ops) return;
  void *domains[] = {ops->contrib, ops->own};
  for (int i = 0; i < 2; i++)
    if (domains[i]) GK_CALL(GK_ReleaseCustomOpDomain, void (*)(void *))(domains[i]);
  free(ops);
}
