// C functions of the static library beside those of the tokenizers binding. The contracts are in src/ffi.rs.
#ifndef GLIMPSE_NATIVE_H
#define GLIMPSE_NATIVE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// Outcome of a call: on status 0 data is the result, on 1 and 2 the error's text (2: the template called raise_exception).
// UTF-8 of len bytes; free with glimpse_result_free.
typedef struct {
	uint8_t *data;
	size_t len;
	int32_t status;
} glimpse_result;

typedef struct glimpse_template glimpse_template;

// Returns NULL and an error in out when the template does not parse.
glimpse_template *glimpse_template_new(const uint8_t *source, size_t len, glimpse_result *out);
// context is a JSON object. Safe to call from several threads.
void glimpse_template_render(const glimpse_template *t, const uint8_t *context, size_t len, size_t max_output, glimpse_result *out);
void glimpse_template_free(glimpse_template *t);

// Loads a tokenizer.json without keeping it and describes its tokens as JSON.
void glimpse_tokenizer_inspect(const uint8_t *json, size_t len, glimpse_result *out);

// What the constraints of one model share. width is the number of its logits, eos are the ids that end an answer.
typedef struct glimpse_grammars glimpse_grammars;
// Returns NULL and an error in out when the tokenizer cannot be used so.
glimpse_grammars *glimpse_grammars_new(const uint8_t *json, size_t len, size_t width, const uint32_t *eos, size_t eos_len, glimpse_result *out);
void glimpse_grammars_free(glimpse_grammars *g); // constraints live on

// A JSON schema that one answer has to be an instance of; for one thread at a time.
typedef struct glimpse_constraint glimpse_constraint;
// Returns NULL and an error in out when the schema cannot be compiled. Safe to call from several threads.
glimpse_constraint *glimpse_constraint_new(const glimpse_grammars *g, const uint8_t *schema, size_t len, bool lenient, glimpse_result *out);
// Bit i of word j is set when token 32 j + i may come next.
void glimpse_constraint_mask(glimpse_constraint *c, uint32_t *mask, size_t words, glimpse_result *out);
// Returns true when the answer is complete.
bool glimpse_constraint_commit(glimpse_constraint *c, uint32_t token, glimpse_result *out);
void glimpse_constraint_free(glimpse_constraint *c);

void glimpse_result_free(glimpse_result *result);

#endif
