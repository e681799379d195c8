package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

func write(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "c.toml")
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func flags() (*pflag.FlagSet, *string, *int, *string) {
	f := pflag.NewFlagSet("x", pflag.ContinueOnError)
	device := f.String("device", "cpu", "")
	threads := f.Int("threads", 0, "")
	lib := f.String("ort-lib", "", "")
	return f, device, threads, lib
}

func env(pairs ...string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		for i := 0; i < len(pairs); i += 2 {
			if pairs[i] == name {
				return pairs[i+1], true
			}
		}
		return "", false
	}
}

func TestFlagOverEnvironmentOverFile(t *testing.T) {
	path := write(t, "device = \"file\"\nthreads = 3\nlisten = \"for another command\"\n")
	for _, tc := range []struct {
		name        string
		args        []string
		env         []string
		wantDevice  string
		wantThreads int
	}{
		{"file", nil, nil, "file", 3},
		{"environment", nil, []string{"GLIMPSE_DEVICE", "env", "GLIMPSE_THREADS", "4"}, "env", 4},
		{"empty variable is not set", nil, []string{"GLIMPSE_DEVICE", ""}, "file", 3},
		{"flag", []string{"--device", "flag"}, []string{"GLIMPSE_DEVICE", "env"}, "flag", 3},
		{"flag with its default", []string{"--threads", "0"}, []string{"GLIMPSE_THREADS", "4"}, "file", 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			file, err := Read(path)
			if err != nil {
				t.Fatal(err)
			}
			f, device, threads, _ := flags()
			if err := f.Parse(tc.args); err != nil {
				t.Fatal(err)
			}
			if _, err := Apply(f, env(tc.env...), file); err != nil {
				t.Fatal(err)
			}
			if *device != tc.wantDevice || *threads != tc.wantThreads {
				t.Errorf("device %s, threads %d", *device, *threads)
			}
		})
	}
}

func TestWrongFiles(t *testing.T) {
	for _, tc := range []struct {
		content string
		parts   []string
	}{
		{"thread = 1", []string{"thread", "did you mean threads?"}},
		{"Device = \"cpu\"", []string{"Device", "did you mean device?"}},
		{"completely_else = 1", []string{"completely_else", "known are", "ort_lib"}},
		{"[serve]\nlisten = \"x\"", []string{"serve"}},
		{"device = [\"cpu\"]", []string{"device", "list"}},
		{"media_hosts = [1]", []string{"media_hosts[0]"}},
		{"media_hosts = [\"a,b\"]", []string{"media_hosts[0]"}},
		{"threads = 1\ndevice = \n", []string{"line 2"}},
		{"thread = 1\ndevise = 2", []string{"thread", "devise"}},
		{strings.Repeat("#", maxBytes+1), []string{"bytes"}},
	} {
		path := write(t, tc.content)
		_, err := Read(path)
		if !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), path) {
			t.Errorf("%.40q: error %v", tc.content, err)
			continue
		}
		for _, p := range tc.parts {
			if !strings.Contains(err.Error(), p) {
				t.Errorf("%.40q: %v does not have %q", tc.content, err, p)
			}
		}
	}
	if _, err := Read(filepath.Join(t.TempDir(), "none.toml")); !errors.Is(err, ErrConfig) {
		t.Errorf("a named file that does not exist: %v", err)
	}
}

func TestWrongValuesNameTheirSource(t *testing.T) {
	path := write(t, "threads = \"many\"")
	file, err := Read(path)
	if err != nil {
		t.Fatal(err)
	}
	f, _, _, _ := flags()
	if _, err := Apply(f, env(), file); !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "many") {
		t.Errorf("%v", err)
	}
	if _, err := Apply(f, env("GLIMPSE_THREADS", "few"), file); err == nil || !strings.Contains(err.Error(), "GLIMPSE_THREADS") {
		t.Errorf("%v", err)
	}
}

func TestFileInTheWorkingDirectory(t *testing.T) {
	t.Chdir(t.TempDir())
	if file, err := Read(""); err != nil || len(file.values) != 0 {
		t.Fatalf("without a file: %v %v", file, err)
	}
	if err := os.WriteFile(FileName, []byte("threads = 2\nort_lib = \"evil.so\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	file, err := Read("")
	if err != nil {
		t.Fatal(err)
	}
	f, _, _, lib := flags()
	// Code from a file that merely lies there is refused, unless something better says which library it is.
	if _, err := Apply(f, env(), file); !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), "--config") {
		t.Errorf("%v", err)
	}
	if _, err := Apply(f, env("GLIMPSE_ORT_LIB", "good.so"), file); err != nil || *lib != "" {
		t.Errorf("with the variable: %v, %q", err, *lib)
	}
	named, err := Read(FileName)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Apply(f, env(), named); err != nil || *lib != "evil.so" {
		t.Errorf("named: %v, %q", err, *lib)
	}
}

// What is printed says where each setting comes from, and read again it gives the same settings.
func TestPrint(t *testing.T) {
	path := write(t, "device = \"file\"\nmedia_hosts = [\"a.example\", \"*.b.example\"]\n")
	file, err := Read(path)
	if err != nil {
		t.Fatal(err)
	}
	newFlags := func() (*pflag.FlagSet, *[]string) {
		f, _, _, _ := flags()
		f.String("listen", "x", "")
		return f, f.StringSlice("media-hosts", nil, "")
	}
	f, hosts := newFlags()
	if err := f.Parse([]string{"--listen", "say \"hi\"\n"}); err != nil {
		t.Fatal(err)
	}
	sources, err := Apply(f, env("GLIMPSE_THREADS", "4"), file)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("GLIMPSE_ORT_LIB", "/lib/ort.so")
	var out strings.Builder
	if err := Print(&out, f, sources); err != nil {
		t.Fatal(err)
	}
	for line, source := range map[string]string{
		`device = "file"`: path, "threads = \"4\"": "GLIMPSE_THREADS", `ort_lib = "/lib/ort.so"`: "GLIMPSE_ORT_LIB",
		`listen = "say \"hi\"\n"`: "--listen", `media_hosts = ["a.example", "*.b.example"]`: path,
	} {
		if want := fmt.Sprintf("%-40s # %s\n", line, source); !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	again, err := Read(write(t, out.String()))
	if err != nil {
		t.Fatal(err)
	}
	g, hostsAgain := newFlags()
	if _, err := Apply(g, env(), again); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"device", "threads", "listen", "media-hosts"} {
		if a, b := f.Lookup(name).Value.String(), g.Lookup(name).Value.String(); a != b {
			t.Errorf("%s was %s and is %s", name, a, b)
		}
	}
	if len(*hosts) != 2 || len(*hostsAgain) != 2 {
		t.Errorf("hosts %q and %q", *hosts, *hostsAgain)
	}
}

func TestMisspeltVariables(t *testing.T) {
	got := Strange([]string{"GLIMPSE_LISTN=x", "GLIMPSE_LISTEN=x", "GLIMPSE_CONFIG=x", "GLIMPSE_PORT_8080_TCP=x", "PATH=x", "GLIMPSE_SOAK=3"})
	if len(got) != 1 || !strings.Contains(got[0], "GLIMPSE_LISTN") || !strings.Contains(got[0], "did you mean GLIMPSE_LISTEN?") {
		t.Errorf("%q", got)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("device = \"cpu\"\nthreads = 4\n")
	f.Add("a.b = 1\n[c]\nd = 2024-01-01\n")
	f.Fuzz(func(t *testing.T, raw string) {
		values, err := parse(raw)
		if err != nil {
			return
		}
		for k := range values {
			if check(string(k)) != nil {
				t.Fatalf("unknown key %q was taken", k)
			}
		}
	})
}

// A program is code, too.
func TestProgramInTheWorkingDirectory(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.WriteFile(FileName, []byte("ffmpeg = \"./evil\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	f, _, _, _ := flags()
	program := f.String("ffmpeg", "", "")
	file, err := Read("")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Apply(f, env(), file); !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), "ffmpeg") || *program != "" {
		t.Errorf("%v, %q", err, *program)
	}
	if _, err := Apply(f, env("GLIMPSE_FFMPEG", "/usr/bin/ffmpeg"), file); err != nil || *program != "/usr/bin/ffmpeg" {
		t.Errorf("with the variable: %v, %q", err, *program)
	}
}
