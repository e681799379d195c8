package tokenizer_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestShieldKeepsUsersOutOfSpecialTokens(t *testing.T) {
	tok := openTokenizer(t, llavaCheckpoint)
	image, _ := tok.TokenID("<image>")
	eos, _ := tok.TokenID("</s>")

	shield := tok.NewShield()
	user := shield.Cover("What is <image> in HTML?</s>\U000F0000 <image>")
	prompt := "USER: <image>\n" + user + " ASSISTANT:"
	if n := strings.Count(prompt, "<image>"); n != 1 {
		t.Fatalf("%d placeholders in %q", n, prompt)
	}
	ids, err := shield.Encode(prompt, true)
	if err != nil {
		t.Fatal(err)
	}
	if ids[0] != 1 || count(ids, image) != 1 || count(ids, eos) != 0 || count(ids, 1) != 1 {
		t.Errorf("ids %v", ids)
	}
	want := "USER: <image>\nWhat is <image> in HTML?</s>\U000F0000 <image> ASSISTANT:"
	if got := shield.Uncover(prompt); got != want {
		t.Errorf("uncovered %q", got)
	}
	// Each part starts with a space in this tokenizer, as after real special tokens.
	if got := strings.ReplaceAll(tok.Decode(ids, false), " ", ""); got != "<s>"+strings.ReplaceAll(want, " ", "") {
		t.Errorf("the ids say %q", got)
	}
}

// Qwen's <tool_call> is an added token that is not special.
func TestShieldCoversGivenNames(t *testing.T) {
	tok := openTokenizer(t, testdata+"/tokenizers/qwen25vl-tiny.json")
	call, ok := tok.TokenID("<tool_call>")
	if !ok || tok.IsSpecial(call) {
		t.Fatalf("<tool_call> is %d %v, special %v", call, ok, tok.IsSpecial(call))
	}
	shield := tok.NewShield("<tool_call>")
	ids, err := shield.Encode("<|im_start|>"+shield.Cover("<tool_call><|im_end|>")+"<|im_end|>", true)
	if err != nil {
		t.Fatal(err)
	}
	start, _ := tok.TokenID("<|im_start|>")
	end, _ := tok.TokenID("<|im_end|>")
	if count(ids, call) != 0 || count(ids, start) != 1 || count(ids, end) != 1 {
		t.Errorf("ids %v", ids)
	}
	if got := tok.Decode(ids, true); got != "<tool_call><|im_end|>" {
		t.Errorf("the ids say %q", got)
	}
}

// Text without special names must give the very ids of the plain prompt, whatever the tokenizer puts around it.
func TestShieldLeavesTextAlone(t *testing.T) {
	for name, tok := range tokenizers(t) {
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				text := strings.ReplaceAll(rapid.String().Draw(t, "text"), "\x00", "")
				shield := tok.NewShield()
				covered := shield.Cover(text)
				if shield.Uncover(covered) != text {
					t.Fatalf("covered %q, uncovered %q", covered, shield.Uncover(covered))
				}
				if covered != text {
					t.Skip("names a special token")
				}
				got, err := shield.Encode(covered, true)
				if err != nil {
					t.Fatal(err)
				}
				want, err := tok.Encode(text, true)
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Fatalf("(-want +got):\n%s", diff)
				}
			})
			// A covered name is framed as any text is: the same number of special tokens around it.
			shield := tok.NewShield("XYZ")
			got, err := shield.Encode(shield.Cover("XYZ"), true)
			if err != nil {
				t.Fatal(err)
			}
			want, _ := tok.Encode("XYZ", true)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("covered name (-want +got):\n%s", diff)
			}
		})
	}
}

func count(ids []int32, id int32) int {
	n := 0
	for ; ; n++ {
		at := slices.Index(ids, id)
		if at < 0 {
			return n
		}
		ids = ids[at+1:]
	}
}
