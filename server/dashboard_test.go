package server

import (
	"encoding/json"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_model/go"

	"glimpse/engine"
)

// counted is a fake with counters, as a loaded model has.
type counted struct{ *fakeModel }

func (counted) Stats() engine.Stats { return engine.Stats{} }

// families are the metrics of a server that has answered, failed and asked for keys, with the labels of each.
func families(t *testing.T) map[string][]string {
	t.Helper()
	reg := prometheus.NewRegistry()
	s, err := New(Options{Models: []Model{counted{newFake("tiny")}}, Registry: reg})
	if err != nil {
		t.Fatal(err)
	}
	post(s.Handler(), chatPath, "application/json", goodChat)
	post(s.Handler(), chatPath, "application/json", `{}`)
	kind, body := form(t, [2]string{"@image", "picture"})
	post(s.Handler(), "/v1/caption", kind, body)
	s.metrics.keyRequests.WithLabelValues("x")
	s.metrics.keyTokens.WithLabelValues("x")
	gathered, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string][]string{}
	for _, f := range gathered {
		names := []string{f.GetName()}
		var labels []string
		for _, l := range f.GetMetric()[0].GetLabel() {
			labels = append(labels, l.GetName())
		}
		if f.GetType() == io_prometheus_client.MetricType_HISTOGRAM {
			names = []string{f.GetName() + "_bucket", f.GetName() + "_sum", f.GetName() + "_count"}
			labels = append(labels, "le")
		}
		for _, name := range names {
			out[name] = labels
		}
	}
	return out
}

var (
	metricName = regexp.MustCompile(`\b(?:glimpse|process|go)_[a-z0-9_]+`)
	selector   = regexp.MustCompile(`((?:glimpse|process|go)_[a-z0-9_]+)\{([^}]*)\}`)
	grouping   = regexp.MustCompile(`by \(([^)]*)\) \(rate\(([a-z_]+)|by \(([^)]*)\) \(([a-z_]+)`)
	labelName  = regexp.MustCompile(`([a-z_]+) *(?:=|!)`)
)

// Every query of the dashboard asks for metrics that there are, by labels that they have.
func TestDashboardQueriesExist(t *testing.T) {
	known := families(t)
	raw, err := os.ReadFile("../docs/grafana/glimpse.json")
	if err != nil {
		t.Fatal(err)
	}
	var board struct {
		Panels []struct {
			Title   string
			Type    string
			Targets []struct{ Expr string }
		}
		Templating struct {
			List []struct{ Query any }
		}
	}
	if err := json.Unmarshal(raw, &board); err != nil {
		t.Fatal(err)
	}
	asked := map[string]bool{}
	has := func(panel, name, label string) {
		if label = strings.TrimSpace(label); label != "" && label != "job" && !slices.Contains(known[name], label) {
			t.Errorf("%s: %s has no label %s, only %v", panel, name, label, known[name])
		}
	}
	for _, p := range board.Panels {
		if p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("%s asks for nothing", p.Title)
		}
		for _, q := range p.Targets {
			if len(metricName.FindAllString(q.Expr, -1)) == 0 {
				t.Errorf("%s: %q asks for no metric", p.Title, q.Expr)
			}
			for _, name := range metricName.FindAllString(q.Expr, -1) {
				asked[name] = true
				if _, ok := known[name]; !ok {
					t.Errorf("%s asks for %s, which there is not", p.Title, name)
				}
			}
			for _, m := range selector.FindAllStringSubmatch(q.Expr, -1) {
				for _, l := range labelName.FindAllStringSubmatch(m[2], -1) {
					has(p.Title, m[1], l[1])
				}
			}
			for _, m := range grouping.FindAllStringSubmatch(q.Expr, -1) {
				for _, l := range strings.Split(m[1]+m[3], ",") {
					has(p.Title, m[2]+m[4], l)
				}
			}
		}
	}
	// And what the server counts is on it.
	for _, name := range slices.Sorted(maps.Keys(known)) {
		base := strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(name, "_bucket"), "_sum"), "_count")
		if strings.HasPrefix(name, "glimpse_") && !asked[name] && !asked[base+"_bucket"] && !asked[base+"_sum"] {
			t.Errorf("%s is on no panel", name)
		}
	}
}

// docs/observability.md lists every metric.
func TestMetricsAreDocumented(t *testing.T) {
	raw, err := os.ReadFile("../docs/observability.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range slices.Sorted(maps.Keys(families(t))) {
		base := strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(name, "_bucket"), "_sum"), "_count")
		if short, ours := strings.CutPrefix(base, "glimpse_"); ours && !strings.Contains(string(raw), "`"+short) {
			t.Errorf("%s is not in docs/observability.md", base)
		}
	}
}
