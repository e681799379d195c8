//go:build browser

// Package browser drives the playground in a real Chromium. It needs the program `chromium`; `make test-browser` runs it
// and leaves its screenshots in .cache/screenshots.
package browser

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"glimpse/convert"
	"glimpse/engine"
	"glimpse/graphs"
	"glimpse/server"
)

const (
	checkpoint = "../../testdata/models/scenes-llava"
	picture    = "../../testdata/pictures/scene-01.png"
)

// serve starts a server with the demo model and returns its address.
func serve(t *testing.T) string {
	t.Helper()
	rt, err := graphs.Open(graphs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { rt.Close() })
	folder := filepath.Join(t.TempDir(), "scenes")
	if _, err := convert.Convert(t.Context(), convert.Options{Checkpoint: checkpoint, Out: folder}); err != nil {
		t.Fatal(err)
	}
	e, err := engine.Open(t.Context(), folder, engine.Options{Runtime: rt})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	s, err := server.New(server.Options{Models: []server.Model{e}})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, ln) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return "http://" + ln.Addr().String()
}

// complaints collects what the browser's console and network say.
type complaints struct {
	mu   sync.Mutex
	list []string
}

func (c *complaints) add(text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.list = append(c.list, text)
}

func (c *complaints) all() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.list)
}

// open starts a browser and returns a tab.
func open(t *testing.T) (context.Context, *complaints) {
	t.Helper()
	flags := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.NoSandbox, chromedp.DisableGPU, chromedp.UserDataDir(t.TempDir()),
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-background-networking", true), chromedp.Flag("disable-component-update", true))
	allocator, stop := chromedp.NewExecAllocator(context.Background(), flags...)
	t.Cleanup(stop)
	tab, closeTab := chromedp.NewContext(allocator)
	t.Cleanup(closeTab)
	tab, cancel := context.WithTimeout(tab, 90*time.Second)
	t.Cleanup(cancel)
	said := &complaints{}
	asked := map[network.RequestID]string{} // the listener is called from one goroutine
	err := chromedp.Listen(tab, func(ev any) {
		switch ev := ev.(type) {
		case *network.EventRequestWillBeSent:
			asked[ev.RequestID] = ev.Request.URL
		case *log.EventEntryAdded:
			said.add(ev.Entry.Text)
		case *runtime.EventExceptionThrown:
			said.add(ev.ExceptionDetails.Text)
		case *network.EventLoadingFailed:
			if !ev.Canceled { // Chromium calls a stream that was read to its end cancelled
				said.add(asked[ev.RequestID] + ": " + ev.ErrorText)
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return tab, said
}

// value runs an action that returns something.
func value[T any](t *testing.T, tab context.Context, action chromedp.Action[T]) T {
	t.Helper()
	v, err := chromedp.Run(tab, action)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// content is the text of an element, whether it is shown or not.
func content(t *testing.T, tab context.Context, id string) string {
	t.Helper()
	return value(t, tab, chromedp.Evaluate[string](`document.getElementById('`+id+`').textContent`))
}

// until waits for a condition on the page.
func until(t *testing.T, tab context.Context, condition string) {
	t.Helper()
	value(t, tab, chromedp.Poll[bool](condition))
}

// screenshot keeps what the page looks like, as a test artefact.
func screenshot(t *testing.T, tab context.Context, name string) {
	t.Helper()
	folder := os.Getenv("SCREENSHOTS")
	if folder == "" {
		folder = t.TempDir()
	}
	png := value(t, tab, chromedp.FullScreenshot(100))
	if err := os.MkdirAll(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(folder, name+".png"), png, 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestPlaygroundAnswersAboutAPicture(t *testing.T) {
	address := serve(t)
	tab, said := open(t)
	file, err := filepath.Abs(picture)
	if err != nil {
		t.Fatal(err)
	}
	err = chromedp.Do(tab, chromedp.EmulateViewport(1200, 900), chromedp.Navigate(address+"/"))
	if err != nil {
		t.Fatal(err)
	}
	until(t, tab, `document.querySelector('#model option') !== null`)
	if models := content(t, tab, "model"); !strings.Contains(models, "scenes") {
		t.Errorf("models %q", models)
	}
	if err := chromedp.Do(tab, chromedp.SetUploadFiles("#file", []string{file})); err != nil {
		t.Fatal(err)
	}
	until(t, tab, `document.getElementById('picture').complete && document.getElementById('picture').naturalWidth > 0`)
	// The keyboard alone is enough: the question field, and Ctrl+Enter.
	if err := chromedp.Do(tab, chromedp.SendKeys("#prompt", "Describe the image.")); err != nil {
		t.Fatal(err)
	}
	value(t, tab, chromedp.Evaluate[bool](`document.getElementById('prompt').dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', ctrlKey: true}))`))
	until(t, tab, `document.getElementById('facts').textContent.includes('tokens') || document.getElementById('answer').classList.contains('error')`)
	if answer := content(t, tab, "answer"); !strings.HasPrefix(answer, "a ") || !strings.Contains(answer, "background") {
		t.Errorf("answer %q", answer)
	}
	if curl := content(t, tab, "curl"); !strings.Contains(curl, address+"/v1/chat/completions") || strings.Contains(curl, "iVBOR") {
		t.Errorf("curl %q", curl)
	}
	screenshot(t, tab, "playground")
	if err := chromedp.Do(tab, chromedp.EmulateViewport(390, 844)); err != nil {
		t.Fatal(err)
	}
	if value(t, tab, chromedp.Evaluate[bool](`document.documentElement.scrollWidth > innerWidth`)) {
		t.Error("at phone width the page scrolls sideways")
	}
	screenshot(t, tab, "playground-phone")
	if err := chromedp.Do(tab, chromedp.EmulateViewport(1200, 900)); err != nil {
		t.Fatal(err)
	}
	dark := emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: "dark"}}}
	if _, err := chromedp.Call(tab, emulation.SetEmulatedMedia, dark); err != nil {
		t.Fatal(err)
	}
	screenshot(t, tab, "playground-dark")
	if list := said.all(); len(list) > 0 {
		t.Errorf("the browser complains: %v", list)
	}
}

// TestPlaygroundShowsErrors: what the server refuses is said on the page.
func TestPlaygroundShowsErrors(t *testing.T) {
	address := serve(t)
	tab, _ := open(t)
	if err := chromedp.Do(tab, chromedp.Navigate(address+"/")); err != nil {
		t.Fatal(err)
	}
	until(t, tab, `document.querySelector('#model option') !== null`)
	if err := chromedp.Do(tab, chromedp.SetValue("#temperature", "9"), chromedp.Click("#ask")); err != nil {
		t.Fatal(err)
	}
	until(t, tab, `document.getElementById('answer').classList.contains('error')`)
	if answer := content(t, tab, "answer"); !strings.Contains(answer, "temperature") {
		t.Errorf("answer %q", answer)
	}
}
