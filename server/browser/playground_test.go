//go:build browser

// Package browser drives the playground in a real Chromium. It needs the program `chromium`; `make test-browser` runs it
// and leaves its screenshots in .cache/screenshots.
package browser

import (
	"context"
	"encoding/base64"
	"net"
	"os"
	"os/exec"
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
	scenes  = "../../testdata/models/scenes-llava"
	picture = "../../testdata/pictures/scene-01.png"
)

// serve starts a server with models, each under the name of its checkpoint's folder, and returns its address.
func serve(t *testing.T, checkpoints ...string) string {
	t.Helper()
	rt, err := graphs.Open(graphs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { rt.Close() })
	var models []server.Model
	for _, checkpoint := range checkpoints {
		name := filepath.Base(strings.TrimSuffix(checkpoint, "/checkpoint"))
		folder := filepath.Join(t.TempDir(), name)
		if _, err := convert.Convert(t.Context(), convert.Options{Checkpoint: checkpoint, Out: folder}); err != nil {
			t.Fatal(err)
		}
		e, err := engine.Open(t.Context(), folder, engine.Options{Runtime: rt})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { e.Close() })
		models = append(models, e)
	}
	s, err := server.New(server.Options{Models: models})
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
	address := serve(t, scenes)
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
	value(t, tab, chromedp.Evaluate[bool](`document.getElementById('prompt').dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', ctrlKey: true, bubbles: true}))`))
	until(t, tab, `document.getElementById('facts').textContent.includes('tokens') || document.getElementById('answer').classList.contains('error')`)
	if answer := content(t, tab, "answer"); !strings.HasPrefix(answer, "a ") || !strings.Contains(answer, "background") {
		t.Errorf("answer %q", answer)
	}
	if curl := content(t, tab, "curl"); !strings.Contains(curl, address+"/v1/chat/completions") || strings.Contains(curl, "iVBOR") || !strings.Contains(curl, "$(base64 -w0 'scene-01.png')") {
		t.Errorf("curl %q", curl)
	}
	// The command that is shown does what it says: it streams the same answer.
	if _, err := exec.LookPath("curl"); err == nil {
		cmd := exec.Command("bash", "-c", content(t, tab, "curl"))
		cmd.Dir = filepath.Dir(file)
		if out, err := cmd.Output(); err != nil || !strings.Contains(string(out), "data: [DONE]") || !strings.Contains(string(out), `"usage"`) {
			t.Errorf("curl: %v, %.500s", err, out)
		}
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
	address := serve(t, scenes)
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

// choose gives the page a file and picks a model.
func choose(t *testing.T, tab context.Context, model, path string) {
	t.Helper()
	file, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	until(t, tab, `document.querySelector('#model option') !== null`)
	value(t, tab, chromedp.Evaluate[bool](`{const m = document.getElementById('model'); m.value = '`+model+`'; m.dispatchEvent(new Event('change')); m.value === '`+model+`'}`))
	if err := chromedp.Do(tab, chromedp.SetUploadFiles("#file", []string{file})); err != nil {
		t.Fatal(err)
	}
	until(t, tab, `file !== null && file.name === '`+filepath.Base(path)+`'`)
}

// asked fills a field in and asks by keyboard, and waits for the end.
func asked(t *testing.T, tab context.Context, field, text string) {
	t.Helper()
	if err := chromedp.Do(tab, chromedp.SetValue("#"+field, text), chromedp.Focus("#"+field)); err != nil {
		t.Fatal(err)
	}
	value(t, tab, chromedp.Evaluate[bool](`document.getElementById('`+field+`').dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', ctrlKey: true, bubbles: true}))`))
	until(t, tab, `document.getElementById('facts').textContent.includes('ms') || document.getElementById('answer').classList.contains('error')`)
}

// Boxes are drawn where the answer points.
func TestPlaygroundDrawsBoxes(t *testing.T) {
	address := serve(t, "../../testdata/models/scenes-qwenvl")
	tab, said := open(t)
	if err := chromedp.Do(tab, chromedp.EmulateViewport(1200, 900), chromedp.Navigate(address+"/")); err != nil {
		t.Fatal(err)
	}
	choose(t, tab, "scenes-qwenvl", "../../testdata/pictures-qwenvl/boxed-03.png")
	asked(t, tab, "prompt", "Where are the shapes?")
	if drawn := value(t, tab, chromedp.Evaluate[int](`{const c = document.getElementById('boxes'); c.getContext('2d').getImageData(0, 0, c.width, c.height).data.filter((v, i) => i % 4 === 3 && v > 0).length}`)); drawn < 100 {
		t.Errorf("%d points are drawn; the answer is %q", drawn, content(t, tab, "answer"))
	}
	screenshot(t, tab, "playground-boxes")
	if list := said.all(); len(list) > 0 {
		t.Errorf("the browser complains: %v", list)
	}
}

// Score models compare: a bar for each text, the best first.
func TestPlaygroundCompares(t *testing.T) {
	address := serve(t, "../../testdata/models/scenes-blip2-itm")
	tab, said := open(t)
	if err := chromedp.Do(tab, chromedp.EmulateViewport(1200, 900), chromedp.Navigate(address+"/")); err != nil {
		t.Fatal(err)
	}
	choose(t, tab, "scenes-blip2-itm", "../../testdata/pictures/scene-01.png")
	asked(t, tab, "texts", "a large orange circle left of a large cyan cross on a black background\na large green triangle left of a small blue circle on a black background\na small yellow cross on a grey background")
	if bars := value(t, tab, chromedp.Evaluate[int](`document.querySelectorAll('.bar meter').length`)); bars != 6 {
		t.Errorf("%d bars, want three texts by two scores; the answer is %q", bars, content(t, tab, "answer"))
	}
	if sorted := value(t, tab, chromedp.Evaluate[bool](`{const v = [...document.querySelectorAll('.bar meter')].map(m => m.value); v[0] >= v[1] && v[1] >= v[2]}`)); !sorted {
		t.Error("the best text is not first")
	}
	screenshot(t, tab, "playground-scores")
	if list := said.all(); len(list) > 0 {
		t.Errorf("the browser complains: %v", list)
	}
}

// A clip goes to a model that takes clips; others say that they do not.
func TestPlaygroundTakesClips(t *testing.T) {
	address := serve(t, "../../testdata/goldens/qwen2vl-tiny/checkpoint", scenes)
	tab, said := open(t)
	if err := chromedp.Do(tab, chromedp.EmulateViewport(390, 844), chromedp.Navigate(address+"/")); err != nil {
		t.Fatal(err)
	}
	choose(t, tab, "qwen2vl-tiny", "../../testdata/goldens/media/video_pan8.gif")
	if curl := content(t, tab, "curl"); !strings.Contains(curl, `"video_url"`) {
		t.Errorf("curl %q", curl)
	}
	asked(t, tab, "prompt", "What happens?")
	if facts := content(t, tab, "facts"); !strings.Contains(facts, "tokens") {
		t.Errorf("facts %q, answer %q", facts, content(t, tab, "answer"))
	}
	choose(t, tab, "qwen2vl-tiny", "../../testdata/goldens/media/shapes_64x48_30f.mp4")
	if value(t, tab, chromedp.Evaluate[bool](`document.getElementById('clip').hidden || !document.getElementById('frame').hidden`)) {
		t.Error("the clip is not shown")
	}
	screenshot(t, tab, "playground-clip-phone")
	choose(t, tab, "scenes-llava", "../../testdata/goldens/media/shapes_64x48_30f.mp4")
	asked(t, tab, "prompt", "What happens?")
	if answer := content(t, tab, "answer"); !strings.Contains(answer, "takes no clips") {
		t.Errorf("answer %q", answer)
	}
	if list := said.all(); len(list) > 0 {
		t.Errorf("the browser complains: %v", list)
	}
}

// A picture may be dropped or pasted, by way of the events that a browser makes of that; a text is neither picture nor clip.
func TestPlaygroundDropAndPaste(t *testing.T) {
	address := serve(t, scenes)
	tab, said := open(t)
	if err := chromedp.Do(tab, chromedp.Navigate(address+"/")); err != nil {
		t.Fatal(err)
	}
	until(t, tab, `document.querySelector('#model option') !== null`)
	raw, err := os.ReadFile(picture)
	if err != nil {
		t.Fatal(err)
	}
	give := func(name, kind, event string) {
		value(t, tab, chromedp.Evaluate[bool](`{
			const bytes = Uint8Array.from(atob('`+base64.StdEncoding.EncodeToString(raw)+`'), c => c.charCodeAt(0)), moved = new DataTransfer();
			moved.items.add(new File([bytes], '`+name+`', {type: '`+kind+`'}));
			`+event+`; true}`))
	}
	shown := `file !== null && file.name === '`
	give("dropped.png", "image/png", `document.getElementById('drop').dispatchEvent(new DragEvent('drop', {dataTransfer: moved, bubbles: true, cancelable: true}))`)
	until(t, tab, shown+`dropped.png'`)
	give("pasted.png", "image/png", `document.dispatchEvent(new ClipboardEvent('paste', {clipboardData: moved}))`)
	until(t, tab, shown+`pasted.png'`)
	if err := chromedp.Do(tab, chromedp.Click("#clear")); err != nil {
		t.Fatal(err)
	}
	until(t, tab, `file === null && document.getElementById('frame').hidden && !document.getElementById('hint').hidden`)
	give("notes.txt", "text/plain", `document.getElementById('drop').dispatchEvent(new DragEvent('drop', {dataTransfer: moved, bubbles: true, cancelable: true}))`)
	until(t, tab, `document.getElementById('answer').textContent.includes('neither a picture nor a clip')`)
	// Esc stops an answer that is being made.
	if err := chromedp.Do(tab, chromedp.SetValue("#tokens", "100000"), chromedp.SetValue("#temperature", "2")); err != nil {
		t.Fatal(err)
	}
	value(t, tab, chromedp.Evaluate[bool](`{document.getElementById('ask').click(); document.dispatchEvent(new KeyboardEvent('keydown', {key: 'Escape'})); true}`))
	until(t, tab, `document.getElementById('facts').textContent.includes('stopped') && !document.getElementById('ask').disabled`)
	if list := said.all(); len(list) > 0 {
		t.Errorf("the browser complains: %v", list)
	}
}
