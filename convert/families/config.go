// Strict decoding of configurations: a key that is not understood may change what the model computes, so it is a
// problem with a name and not ignored. Only the keys below are known to change nothing.

package families

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"sort"
	"strings"

	"glimpse/convert/blocks"
)

// inertKeys say nothing about inference: bookkeeping, training, and generation defaults that generation_config.json
// holds. They are the base keys of transformers' PretrainedConfig and what saved configurations repeat.
var inertKeys = strings.Fields(`
	_attn_implementation_autoset _commit_hash _name_or_path activation_dropout add_cross_attention architectures attention_dropout
	attn_implementation auto_map bad_words_ids begin_suppress_tokens bos_token_id chunk_size_feed_forward classifier_dropout
	cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample dropout dropout_rate dtype early_stopping
	encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty finetuning_task forced_bos_token_id
	forced_eos_token_id id2label ignore_index init_std initializer_factor initializer_range is_composition is_decoder
	is_encoder_decoder label2id layerdrop length_penalty logit_scale_init_value max_length max_sequence_length min_length model_type no_repeat_ngram_size
	num_beam_groups num_beams num_return_sequences output_attentions output_hidden_states output_past output_scores pad_token_id
	prefix pretraining_tp problem_type projection_dim pruned_heads remove_invalid_values repetition_penalty return_dict
	return_dict_in_generate sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss
	tie_encoder_decoder tokenizer_class top_k top_p torch_dtype torchscript transformers_version typical_p use_bfloat16
	use_cache`)

// decode fills into (which holds the class defaults) from a JSON object and notes every key that is neither a field nor
// inert. where names the object in messages: "config.json text_config".
func decode(raw json.RawMessage, into any, where string, t *blocks.Tensors) {
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(raw, &keys); err != nil {
		t.Problem(where, fmt.Sprintf("is not a JSON object: %v", err))
		return
	}
	fields := jsonFields(reflect.TypeOf(into).Elem())
	var unknown []string
	for k := range keys {
		if !slices.Contains(fields, k) && !slices.Contains(inertKeys, k) {
			unknown = append(unknown, k)
		}
	}
	sort.Strings(unknown)
	for _, k := range unknown {
		t.Problem(where+" "+k, fmt.Sprintf("(%s) is not a field this family understands", clip(string(keys[k]), 60)))
	}
	if err := json.Unmarshal(raw, into); err != nil {
		t.Problem(where, fmt.Sprintf("cannot be decoded: %v", err))
	}
}

// jsonFields lists the JSON names of a struct's fields, embedded structs included.
func jsonFields(typ reflect.Type) []string {
	var names []string
	for i := range typ.NumField() {
		f := typ.Field(i)
		if f.Anonymous && f.Type.Kind() == reflect.Struct {
			names = append(names, jsonFields(f.Type)...)
			continue
		}
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name != "" && name != "-" {
			names = append(names, name)
		}
	}
	return names
}

func clip(s string, n int) string {
	if len(s) > n {
		return s[:n] + "…"
	}
	return s
}

// within notes a size that lies outside of what any model has, before anything is computed from it.
func within(t *blocks.Tensors, where string, v, low, high int64) bool {
	if v < low || v > high {
		t.Problem(where, fmt.Sprintf("is %d; it must lie in %d..%d", v, low, high))
		return false
	}
	return true
}

// oneOrMany decodes token ids that are written as a number or a list.
type oneOrMany []int

func (o *oneOrMany) UnmarshalJSON(raw []byte) error {
	if string(raw) == "null" {
		return nil
	}
	var one int
	if json.Unmarshal(raw, &one) == nil {
		*o = oneOrMany{one}
		return nil
	}
	var many []int
	if err := json.Unmarshal(raw, &many); err != nil {
		return fmt.Errorf("a number or a list of numbers is due, not %s", clip(string(raw), 40))
	}
	*o = many
	return nil
}
