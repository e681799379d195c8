package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// goldenCase is the part of cases.json that these tests compare.
type goldenCase struct {
	ID       string          `json:"id"`
	Images   []string        `json:"images"`
	Messages json.RawMessage `json:"messages"`
	Expected struct {
		InputIDs       []int32 `json:"input_ids"`
		NumImageTokens int     `json:"num_image_tokens"`
		GeneratedIDs   []int32 `json:"generated_ids"`
		Text           string  `json:"text"`
		Finish         string  `json:"finish"`
		IDsStable      bool    `json:"ids_stable"`
	} `json:"expected"`
}

func goldenCases(t *testing.T) []goldenCase {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(goldenSet, "cases.json"))
	if err != nil {
		t.Fatal(err)
	}
	var set struct {
		Cases []goldenCase `json:"cases"`
	}
	if err := json.Unmarshal(raw, &set); err != nil {
		t.Fatal(err)
	}
	return set.Cases
}

func decode[T any](t *testing.T, text string) T {
	t.Helper()
	var v T
	dec := json.NewDecoder(strings.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&v); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return v
}

// openAIMessages puts pictures where the golden set has {"type": "image"}, in one of the forms that ask reads.
func openAIMessages(t *testing.T, c goldenCase, address func(path string) any) string {
	t.Helper()
	var messages []map[string]any
	if err := json.Unmarshal(c.Messages, &messages); err != nil {
		t.Fatal(err)
	}
	next := 0
	for _, m := range messages {
		parts, _ := m["content"].([]any)
		for i, p := range parts {
			if p.(map[string]any)["type"] == "image" {
				parts[i] = map[string]any{"type": "image_url", "image_url": address(filepath.Join(media, c.Images[next]))}
				next++
			}
		}
	}
	raw, err := json.Marshal(messages)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "messages.json")
	overwrite(t, path, raw)
	return path
}

func TestAskAnswersGoldenConversations(t *testing.T) {
	m := model(t)
	forms := []func(path string) any{
		func(path string) any { return path },
		func(path string) any { return map[string]any{"url": path, "detail": "auto"} },
		func(path string) any {
			abs, err := filepath.Abs(path)
			if err != nil {
				t.Fatal(err)
			}
			return map[string]any{"url": "file://" + abs}
		},
		func(path string) any {
			raw, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			return map[string]any{"url": "data:image/png;base64," + base64Of(raw)}
		},
	}
	ran := 0
	for i, c := range goldenCases(t) {
		if c.Messages == nil || string(c.Messages) == "null" || !c.Expected.IDsStable {
			continue
		}
		ran++
		t.Run(c.ID, func(t *testing.T) {
			r := must(t, "ask", m, "--messages", openAIMessages(t, c, forms[i%len(forms)]), "--max-tokens", "24", "--json")
			got := decode[reply](t, r.stdout)
			if d := cmp.Diff(c.Expected.InputIDs, got.PromptTokenIDs); d != "" {
				t.Errorf("prompt_token_ids (-want +got):\n%s", d)
			}
			if d := cmp.Diff(c.Expected.GeneratedIDs, got.TokenIDs); d != "" {
				t.Errorf("token_ids (-want +got):\n%s", d)
			}
			if got.Text != c.Expected.Text || got.FinishReason != c.Expected.Finish {
				t.Errorf("text %q, finish %q; want %q, %q", got.Text, got.FinishReason, c.Expected.Text, c.Expected.Finish)
			}
			want := replyUsage{len(c.Expected.InputIDs), len(c.Expected.GeneratedIDs), c.Expected.NumImageTokens, 0, 0}
			if got.Usage != want {
				t.Errorf("usage %+v, want %+v", got.Usage, want)
			}
			if !strings.Contains(r.stdout, `"boxes": []`) || got.Timings.LoadMS <= 0 {
				t.Errorf("boxes must be a list and load_ms positive: %s", r.stdout)
			}
		})
	}
	if ran == 0 {
		t.Fatal("no golden case was asked")
	}
}

func TestAskStreamsWhatJSONSays(t *testing.T) {
	m := model(t)
	args := []string{"ask", m, "What is it?", "--image", filepath.Join(media, "cat.png"), "--max-tokens", "20"}
	text := must(t, args...).stdout
	whole := decode[reply](t, must(t, append(args, "--json")...).stdout)
	if text != whole.Text+"\n" && text != whole.Text {
		t.Errorf("printed %q, JSON has %q", text, whole.Text)
	}
	sampled := append(args, "--json", "--temperature", "1.3", "--top-k", "50", "--top-p", "0.95", "--min-p", "0.01", "--repetition-penalty", "1.1", "--seed", "7")
	a, b := decode[reply](t, must(t, sampled...).stdout), decode[reply](t, must(t, sampled...).stdout)
	if !slices.Equal(a.TokenIDs, b.TokenIDs) {
		t.Errorf("one seed gave two answers: %v %v", a.TokenIDs, b.TokenIDs)
	}
	if slices.Equal(a.TokenIDs, whole.TokenIDs) {
		t.Errorf("sampling at temperature 1.3 gave the greedy answer: %v", a.TokenIDs)
	}
}

func TestAskWithoutPromptUsesTheCaptionPrompt(t *testing.T) {
	m := model(t)
	args := []string{"ask", m, "--image", filepath.Join(media, "cat.png"), "--max-tokens", "5", "--json"}
	in := decode[inspection](t, must(t, "inspect", m, "--json").stdout)
	got := decode[reply](t, must(t, args...).stdout)
	want := decode[reply](t, must(t, append(args, in.Prompt.Caption)...).stdout)
	if !slices.Equal(got.PromptTokenIDs, want.PromptTokenIDs) {
		t.Errorf("prompt %v, want that of %q: %v", got.PromptTokenIDs, in.Prompt.Caption, want.PromptTokenIDs)
	}
	exif := []string{"ask", m, "--image", filepath.Join(media, "astronaut_exif6.jpg"), "--max-tokens", "5", "--json"}
	upright, lying := decode[reply](t, must(t, exif...).stdout), decode[reply](t, must(t, append(exif, "--no-exif")...).stdout)
	if slices.Equal(upright.TokenIDs, lying.TokenIDs) {
		t.Errorf("--no-exif changed nothing: %v", lying.TokenIDs)
	}
}

func TestVerify(t *testing.T) {
	m := model(t)
	r := must(t, "verify", m, "--golden", goldenSet)
	for _, part := range []string{"generated_ids", "logits_first", "pixel_values", "10 of 10 cases ok"} {
		if !strings.Contains(r.stdout, part) {
			t.Errorf("the table lacks %q:\n%s", part, r.stdout)
		}
	}
	// The same set against weights that are not the golden ones.
	wrong := filepath.Join(t.TempDir(), "int4")
	must(t, "convert", checkpoint, "-o", wrong, "--precision", "int4")
	r = glimpse(t, "verify", wrong, "--golden", goldenSet, "--json")
	var report struct {
		OK    bool `json:"ok"`
		Cases []struct {
			OK bool `json:"ok"`
		} `json:"cases"`
	}
	if err := json.Unmarshal([]byte(r.stdout), &report); err != nil {
		t.Fatal(err)
	}
	if r.code != exitFound || report.OK || len(report.Cases) == 0 || r.stderr != "" {
		t.Errorf("exit %d, ok %v, %d cases, standard error %q", r.code, report.OK, len(report.Cases), r.stderr)
	}
}

func TestConvertSummaryAndForce(t *testing.T) {
	out := filepath.Join(t.TempDir(), "m")
	r := must(t, "convert", checkpoint, "-o", out, "--precision", "int8", "--json")
	var s struct {
		Precision string `json:"precision"`
		Planned   bool   `json:"planned"`
		Bytes     int64  `json:"bytes"`
	}
	if err := json.Unmarshal([]byte(r.stdout), &s); err != nil {
		t.Fatal(err)
	}
	if s.Precision != "int8" || s.Planned || s.Bytes <= 0 {
		t.Errorf("summary %+v", s)
	}
	refused(t, glimpse(t, "convert", checkpoint, "-o", out), out)
	if r := must(t, "convert", checkpoint, "-o", out, "--force", "--precision", "fp32"); !strings.Contains(r.stdout, "policy") {
		t.Errorf("the precision policy is not printed: %s", r.stdout)
	}
	if in := decode[inspection](t, must(t, "inspect", out, "--json").stdout); in.Precision != "fp32" {
		t.Errorf("--force left precision %s", in.Precision)
	}
	plan := must(t, "convert", checkpoint, "--plan", "-o", filepath.Join(filepath.Dir(out), "planned"))
	if !strings.HasPrefix(plan.stdout, "planned ") || len(entries(t, filepath.Dir(out))) != 1 {
		t.Errorf("--plan wrote something: %s %v", plan.stdout, entries(t, filepath.Dir(out)))
	}
}

func TestInspect(t *testing.T) {
	m := model(t)
	in := decode[inspection](t, must(t, "inspect", m, "--json").stdout)
	var names []string
	for _, c := range in.Components {
		names = append(names, c.Name)
		if c.Bytes <= 0 || len(c.Inputs) == 0 || len(c.Outputs) == 0 {
			t.Errorf("component %+v", c)
		}
	}
	if !slices.Equal(names, []string{"vision", "connector", "decoder"}) || in.Bytes <= 0 {
		t.Errorf("components %v, %d bytes", names, in.Bytes)
	}
	for _, path := range []string{m, checkpoint} {
		if r := must(t, "inspect", path); !strings.Contains(r.stdout, "decoder") {
			t.Errorf("inspect %s: %s", path, r.stdout)
		}
	}
	broken := t.TempDir()
	if err := os.CopyFS(broken, os.DirFS(m)); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(broken, "embeddings.bin")); err != nil {
		t.Fatal(err)
	}
	if r := glimpse(t, "inspect", broken); r.code != exitUsage || !strings.Contains(r.stderr, "embeddings.bin") {
		t.Errorf("exit %d: %s", r.code, r.stderr)
	}
}

func TestDoctorAndVersion(t *testing.T) {
	d := decode[diagnosis](t, must(t, "doctor", "--json").stdout)
	if !d.OK || !d.ONNXRuntime.OK || !d.Tokenizers.OK || d.CPU.Processors < 1 || d.Memory.TotalBytes <= 0 {
		t.Errorf("%+v", d)
	}
	r := glimpse(t, "doctor", "--ort-lib", t.TempDir())
	if r.code != exitFound || !strings.Contains(r.stdout, "MISSING") || r.stderr != "" {
		t.Errorf("without a library: exit %d, %s%s", r.code, r.stdout, r.stderr)
	}
	if v := decode[build](t, must(t, "version", "--json").stdout); v.ONNXRuntime != d.ONNXRuntime.Version || v.Version == "" {
		t.Errorf("%+v", v)
	}
	if r := glimpse(t, "version", "--ort-lib", t.TempDir()); r.code != 0 || !strings.Contains(r.stdout, "not found") {
		t.Errorf("without a library: %+v", r)
	}
}

func TestSettingsAreLayered(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "mine.toml")
	overwrite(t, file, []byte("ort_lib = \""+dir+"\"\n"))
	// The file names a folder without a library; environment and flag name the real one.
	lib := os.Getenv("GLIMPSE_ORT_LIB")
	if r := glimpse(t, "doctor", "--config", file); r.code != 0 {
		t.Errorf("the environment must win over the file: %s", r.stdout)
	}
	without := command(t, "doctor", "--config", file)
	without.Env = append(slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "GLIMPSE_") }), "GLIMPSE_CONFIG="+file)
	if r := runIt(t, without); r.code != exitFound {
		t.Errorf("the file must be read: exit %d", r.code)
	}
	flagged := command(t, "doctor", "--ort-lib", lib)
	flagged.Env = append(os.Environ(), "GLIMPSE_ORT_LIB="+dir, "GLIMPSE_CONFIG="+file)
	if r := runIt(t, flagged); r.code != 0 {
		t.Errorf("the flag must win over both: %s", r.stdout)
	}
	bad := command(t, "doctor")
	bad.Env = append(os.Environ(), "GLIMPSE_DEVICE=tpu")
	refused(t, runIt(t, bad), "GLIMPSE_DEVICE", "tpu")
	found := command(t, "version")
	found.Dir = t.TempDir()
	overwrite(t, filepath.Join(found.Dir, "glimpse.toml"), []byte("divice = \"cpu\"\n"))
	refused(t, runIt(t, found), "glimpse.toml", "divice", "device")
}

// --print-config needs no model, and what it prints is a file that says the same.
func TestPrintConfig(t *testing.T) {
	first := must(t, "serve", "--print-config", "--media-hosts", "a.example,*.b.example", "--memory-limit", "2GiB", "--answer-timeout", "90s")
	for _, line := range []string{`media_hosts = ["a.example", "*.b.example"]`, `memory_limit = "2147483648"`, `answer_timeout = "1m30s"`, `log_level = "info"`} {
		if !strings.Contains(first.stdout, line) {
			t.Errorf("no %s in\n%s", line, first.stdout)
		}
	}
	file := filepath.Join(t.TempDir(), "again.toml")
	overwrite(t, file, []byte(first.stdout))
	again := must(t, "serve", "--print-config", "--config", file)
	settings := func(text string) (out []string) {
		for line := range strings.Lines(text) {
			setting, _, _ := strings.Cut(line, " # ")
			out = append(out, strings.TrimSpace(setting))
		}
		return out
	}
	if a, b := settings(first.stdout), settings(again.stdout); !slices.Equal(a, b) {
		t.Errorf("printed %q, read again %q", a, b)
	}
	refused(t, glimpse(t, "serve", model(t), "--media-hosts", "http://a.example"), "--media-hosts", "http://a.example")
}

func TestServeAnswersAndStops(t *testing.T) {
	m := model(t)
	cmd := command(t, "serve", m, "--listen", "127.0.0.1:0")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	where := regexp.MustCompile(`http://[0-9.:]+`)
	base := ""
	lines := bufio.NewScanner(stderr)
	for base == "" && lines.Scan() {
		base = where.FindString(lines.Text())
	}
	go io.Copy(io.Discard, stderr)
	if base == "" {
		t.Fatal("no address on standard error")
	}
	for _, path := range []string{"/healthz", "/v1/models"} {
		resp, err := http.Get(base + path)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK || (path == "/v1/models" && !strings.Contains(string(body), `"`+filepath.Base(m)+`"`)) {
			t.Errorf("%s: %d %s", path, resp.StatusCode, body)
		}
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v", err)
	}
}

func TestBench(t *testing.T) {
	m := model(t)
	page := filepath.Join(t.TempDir(), "bench.html")
	r := must(t, "bench", m, "--parallel", "1,2", "--repeat", "2", "--new-tokens", "8", "--prompt-tokens", "60", "--decode-prompt-tokens", "20", "--html", page, "--json")
	b := decode[benchmark](t, r.stdout)
	for name, s := range map[string]*spread{
		"decode picture": b.DecodePictureMS, "prefill": b.PrefillMS, "request": b.RequestMS, "second question": b.SecondTTFTMS,
		"preprocess": b.PreprocessMS, "vision": b.VisionMS, "connector": b.ConnectorMS, "prefill_tps": b.PrefillTPS,
		"ttft": b.TTFTMS, "load": b.LoadMS, "decode 1": b.DecodeTPS["1"], "decode 2": b.DecodeTPS["2"],
	} {
		if s == nil || s.Min <= 0 || s.Min > s.Median || s.Median > s.Max {
			t.Errorf("%s: %+v", name, s)
		}
	}
	if b.RequestMS != nil && b.TTFTMS != nil && b.RequestMS.Min < b.TTFTMS.Min || b.RSSLoadedMB <= 0 || b.RSSLoadedMB > b.RSSMB {
		t.Errorf("%+v", b)
	}
	if html, err := os.ReadFile(page); err != nil || !strings.Contains(string(html), "decode tokens/s, 2 at once") || strings.Contains(string(html), "://") {
		t.Errorf("the page: %v\n%s", err, html)
	}
	if b.PrefillTokens == nil || b.PrefillTokens.Min < 60 || b.RSSMB <= 0 || b.Threads < 1 || b.Precision != "fp32" {
		t.Errorf("%+v", b)
	}
}

// From a folder, a configuration and a tensor list: each gives a checkpoint that converts and answers, whatever it says.
func TestSynth(t *testing.T) {
	for name, source := range map[string]string{"folder": checkpoint, "configuration": filepath.Join(checkpoint, "config.json")} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			made, m := filepath.Join(dir, "made"), filepath.Join(dir, "m")
			s := decode[synthReply](t, must(t, "synth", source, "-o", made, "--seed", "3", "--json").stdout)
			if s.Tensors < 10 || s.Bytes <= 0 || (s.StandInTokens > 0) != (name == "configuration") {
				t.Errorf("%+v", s)
			}
			refused(t, glimpse(t, "synth", source, "-o", made), made)
			must(t, "convert", made, "-o", m)
			r := decode[reply](t, must(t, "ask", m, "--image", filepath.Join(media, "cat.png"), "--max-tokens", "3", "--json").stdout)
			if len(r.TokenIDs) == 0 {
				t.Errorf("%+v", r)
			}
			again := filepath.Join(dir, "again")
			must(t, "synth", source, "-o", again, "--seed", "3")
			for _, file := range s.Files {
				a, err := os.ReadFile(filepath.Join(made, file))
				if err != nil {
					t.Fatal(err)
				}
				b, err := os.ReadFile(filepath.Join(again, file))
				if err != nil || !bytes.Equal(a, b) {
					t.Errorf("%s differs with the same seed: %v", file, err)
				}
			}
		})
	}
}

// An interrupted conversion leaves nothing, and says so in the usual way.
func TestConvertInterrupted(t *testing.T) {
	if testing.Short() {
		t.Skip("writes 200 MB")
	}
	big := copyCheckpoint(t)
	editJSON(t, filepath.Join(big, "config.json"), func(v map[string]any) {
		text := v["text_config"].(map[string]any)
		text["hidden_size"], text["intermediate_size"], text["num_hidden_layers"] = 512, 8192, 6
		text["num_attention_heads"], text["num_key_value_heads"] = 8, 2
	})
	dir := t.TempDir()
	made, place := filepath.Join(dir, "made"), filepath.Join(dir, "place")
	must(t, "synth", filepath.Join(big, "config.json"), "-o", made)
	if err := os.Mkdir(place, 0o755); err != nil {
		t.Fatal(err)
	}
	interrupted := 0
	for range 3 {
		cmd := command(t, "convert", made, "-o", filepath.Join(place, "m"), "--precision", "int4")
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(20 * time.Second); len(entries(t, place)) == 0 && time.Now().Before(deadline); {
			time.Sleep(time.Millisecond)
		}
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		if cmd.ProcessState.ExitCode() == 0 { // it was faster than the signal
			if err := os.RemoveAll(filepath.Join(place, "m")); err != nil {
				t.Fatal(err)
			}
			continue
		}
		interrupted++
		if code := cmd.ProcessState.ExitCode(); code != exitInterrupted || stderr.String() != "glimpse: interrupted\n" {
			t.Errorf("exit %d: %q", code, stderr.String())
		}
		if left := entries(t, place); len(left) > 0 {
			t.Fatalf("left behind: %v", left)
		}
	}
	if interrupted == 0 {
		t.Error("no conversion was interrupted: the checkpoint is too small for this test")
	}
}
