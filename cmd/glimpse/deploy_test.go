// The examples in docs/deploy hold what they say: every flag, variable, path and metric that they name is the program's.

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"glimpse/cmd/glimpse/internal/config"
	"glimpse/hub"
)

const deployFolder = "../../docs/deploy"

// launch is one way that an example starts the program.
type launch struct {
	where string
	args  []string
	env   map[string]string
}

// check starts nothing, but takes arguments and variables as the program would.
func (l launch) check(t *testing.T) {
	t.Helper()
	a := &app{stdout: io.Discard, stderr: io.Discard}
	command, rest, err := newRoot(a).Find(l.args)
	if err != nil || !command.HasParent() {
		t.Errorf("%s: %v: %v", l.where, l.args, err)
		return
	}
	if err := command.ParseFlags(rest); err != nil {
		t.Errorf("%s: %v: %v", l.where, l.args, err)
	}
	if err := command.Args(command, command.Flags().Args()); err != nil {
		t.Errorf("%s: %v: %v", l.where, l.args, err)
	}
	hubs := hubVariables(t)
	for _, name := range slices.Sorted(maps.Keys(l.env)) {
		value := l.env[name]
		if slices.Contains(hubs, name) {
			continue
		}
		flagName := strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(name, "GLIMPSE_")), "_", "-")
		flag := command.Flags().Lookup(flagName)
		if !strings.HasPrefix(name, "GLIMPSE_") || flag == nil {
			t.Errorf("%s: %s is no variable of glimpse %s", l.where, name, command.Name())
			continue
		}
		before := flag.Value.String()
		only := func(asked string) (string, bool) { return value, asked == name }
		if _, err := config.Apply(command.Flags(), only, &config.File{}); err != nil {
			t.Errorf("%s: %v", l.where, err)
		}
		if flag.Value.String() == before && before != value {
			t.Errorf("%s: %s=%s changes nothing", l.where, name, value)
		}
	}
}

// hubVariables are those that pull reads.
func hubVariables(t *testing.T) []string {
	t.Helper()
	var names []string
	if _, err := hub.FromEnvironment(func(name string) string { names = append(names, name); return "" }); err == nil {
		t.Fatal("the hub's cache needs no variable at all")
	}
	if _, err := hub.FromEnvironment(func(name string) string {
		names = append(names, name)
		return map[string]string{"HF_HOME": "/none"}[name]
	}); err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(names, func(name string) bool { return !strings.HasPrefix(name, "HF_") })
}

func deployFile(t *testing.T, name string) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(deployFolder, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// manifests are the documents of a YAML file.
func manifests(t *testing.T, name string) []map[string]any {
	t.Helper()
	var all []map[string]any
	for in := yaml.NewDecoder(strings.NewReader(deployFile(t, name))); ; {
		var doc map[string]any
		err := in.Decode(&doc)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for _, key := range []string{"apiVersion", "kind", "metadata"} {
			if doc[key] == nil {
				t.Errorf("%s: a document without %s", name, key)
			}
		}
		all = append(all, doc)
	}
	if len(all) == 0 {
		t.Fatalf("%s is empty", name)
	}
	return all
}

// visit calls f for every mapping below a value.
func visit(v any, f func(map[string]any)) {
	switch v := v.(type) {
	case map[string]any:
		f(v)
		for _, part := range v {
			visit(part, f)
		}
	case []any:
		for _, part := range v {
			visit(part, f)
		}
	}
}

func TestDeployManifests(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(deployFolder, "*.yaml"))
	if err != nil || len(files) != 4 {
		t.Fatalf("%v, %v", files, err)
	}
	launches, probes := 0, map[string]bool{}
	for _, file := range files {
		name := filepath.Base(file)
		for _, doc := range manifests(t, name) {
			visit(doc, func(m map[string]any) {
				if get, ok := m["httpGet"].(map[string]any); ok {
					probes[fmt.Sprint(get["path"])] = true
				}
				args, ok := m["args"].([]any)
				if !ok || m["image"] == nil {
					return
				}
				l := launch{where: name + ": " + fmt.Sprint(m["name"]), env: map[string]string{}}
				for _, arg := range args {
					l.args = append(l.args, fmt.Sprint(arg))
				}
				env, _ := m["env"].([]any)
				for _, e := range env {
					entry := e.(map[string]any)
					l.env[fmt.Sprint(entry["name"])] = fmt.Sprint(entry["value"])
				}
				launches++
				l.check(t)
				if slices.Contains(l.args, "serve") && m["readinessProbe"] == nil {
					t.Errorf("%s has no probe", l.where)
				}
			})
		}
	}
	if launches != 3 {
		t.Errorf("%d containers were found, want 3", launches)
	}
	keysOfTheExample(t)
	s := startServing(t, model(t))
	if a, err := s.stream(filepath.Base(model(t)), "hello", 3); err != nil || !a.done {
		t.Fatalf("%+v, %v", a, err)
	}
	_, document := s.get(t, "/openapi.json")
	for path := range probes {
		if !strings.Contains(document, `"`+path+`":`) {
			t.Errorf("no endpoint %s", path)
		}
	}
	_, page := s.get(t, "/metrics")
	metrics := map[string]bool{}
	for _, file := range files {
		for _, name := range regexp.MustCompile(`glimpse_[a-z_]+`).FindAllString(deployFile(t, filepath.Base(file)), -1) {
			metrics[name] = true
		}
	}
	for name := range metrics {
		if !strings.Contains(page, "\n# TYPE "+name+" ") {
			t.Errorf("no metric %s", name)
		}
	}
	if len(metrics) == 0 || len(probes) != 2 {
		t.Errorf("metrics %v, probes %v", metrics, probes)
	}
}

// keysOfTheExample: the file of keys in the secret is one that the server takes.
func keysOfTheExample(t *testing.T) {
	t.Helper()
	for _, doc := range manifests(t, "kubernetes.yaml") {
		data, ok := doc["stringData"].(map[string]any)
		if !ok {
			continue
		}
		path := filepath.Join(t.TempDir(), "keys")
		if err := os.WriteFile(path, []byte(fmt.Sprint(data["keys"])), 0o600); err != nil {
			t.Fatal(err)
		}
		s := startServing(t, "--keys", path, model(t))
		if code, body := s.get(t, "/v1/models"); code != 401 {
			t.Errorf("without a key: %d %s", code, body)
		}
		return
	}
	t.Error("no secret")
}

func TestDeployUnit(t *testing.T) {
	text := deployFile(t, "glimpse.service")
	l := launch{where: "glimpse.service", env: map[string]string{}}
	const installed = "/opt/glimpse/glimpse"
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if start, ok := strings.CutPrefix(line, "ExecStart="); ok {
			words := strings.Fields(start)
			if words[0] != installed {
				t.Errorf("it starts %s", words[0])
			}
			l.args = words[1:]
		}
		if set, ok := strings.CutPrefix(line, "Environment="); ok {
			name, value, _ := strings.Cut(set, "=")
			l.env[name] = value
		}
	}
	if len(l.env) < 4 {
		t.Errorf("environment %v", l.env)
	}
	l.check(t)
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip("systemd-analyze is not here")
	}
	unit := filepath.Join(t.TempDir(), "glimpse.service")
	if err := os.WriteFile(unit, []byte(strings.ReplaceAll(text, "ExecStart="+installed, "ExecStart="+program)), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("systemd-analyze", "verify", unit).CombinedOutput()
	if err != nil || bytes.Contains(out, []byte("glimpse.service")) {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}

func TestDeployContainerfile(t *testing.T) {
	l := launch{where: "Containerfile", env: map[string]string{}}
	var copied []string
	for line := range strings.Lines(deployFile(t, "Containerfile")) {
		words := strings.Fields(line)
		switch {
		case len(words) == 0:
		case words[0] == "CMD":
			l.args = strings.FieldsFunc(line[len("CMD"):], func(r rune) bool { return strings.ContainsRune(` [],"`+"\n", r) })
		case words[0] == "ENV":
			for _, word := range words[1:] {
				if name, value, _ := strings.Cut(word, "="); strings.HasPrefix(name, "GLIMPSE_") {
					l.env[name] = value
				}
			}
		case words[0] == "COPY" && !strings.HasPrefix(words[1], "--"):
			copied = append(copied, words[1:len(words)-1]...)
		}
	}
	l.check(t)
	if len(l.env) != 2 || len(copied) < 5 {
		t.Errorf("environment %v, copied %v", l.env, copied)
	}
	for _, name := range copied {
		if _, err := os.Stat(filepath.Join("../..", name)); err != nil {
			t.Error(err)
		}
	}
}
