// Package browsertest drives Chromium as a person without a mouse does: with Tab, Enter,
// Space, arrows and text. Whatever a test does through it works by keyboard.
package browsertest

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/millracehq/millrace/internal/test/pgtest"
)

// axe is axe-core, from npm; vendor.sum has its version and checksum.
//
//go:embed axe.js
var axe string

// Widths of screens, in CSS pixels.
const (
	Phone   = 390
	Desktop = 1440
)

const (
	height      = 900
	webpQuality = 80
)

// Tab is a tab of a browser of its own, without cookies.
type Tab struct {
	tb   testing.TB
	ctx  context.Context //nolint:containedctx // it is the tab
	base string

	mu     sync.Mutex
	errors []string
}

// chromium starts the browser that all tests of a process share.
var chromium = sync.OnceValues(func() (context.Context, error) {
	path, err := exec.LookPath("chromium")
	if err != nil {
		return nil, fmt.Errorf("%w: run scripts/chromium.sh", err)
	}

	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.Flag("hide-scrollbars", true))
	if os.Geteuid() == 0 {
		options = append(options, chromedp.NoSandbox) // which Chromium does not start as root
	}

	ctx, _ := chromedp.NewExecAllocator(context.Background(), options...) // it ends with the process
	ctx, _ = chromedp.NewContext(ctx)

	return ctx, chromedp.Do(ctx)
})

// New opens a tab of a desktop's size. Paths that it is given later are below base. The
// test fails if a page logs an error, such as a script that its policy refuses.
func New(tb testing.TB, base string) *Tab {
	tb.Helper()

	browser, err := chromium()
	if err != nil {
		tb.Fatal(err)
	}

	t := &Tab{tb: tb, base: base}

	var cancel context.CancelFunc

	t.ctx, cancel = chromedp.NewContext(browser, chromedp.WithNewBrowserContext())
	tb.Cleanup(cancel)

	// This opens the tab. A tab stops when the context ends that opened it, so it cannot be
	// opened by a step, whose context ends with the step.
	messages := chromedp.Console(t.ctx)

	go func() {
		for message, err := range messages {
			if err != nil {
				return
			}

			if message.Type == "error" || message.IsException() {
				t.mu.Lock()
				t.errors = append(t.errors, message.Text)
				t.mu.Unlock()
			}
		}
	}()

	tb.Cleanup(func() {
		for _, text := range t.Errors() {
			tb.Errorf("a page logged an error: %s", text)
		}
	})

	tb.Cleanup(func() {
		if tb.Failed() {
			ctx, cancel := context.WithTimeout(t.ctx, patience)
			defer cancel()

			text, err := chromedp.Run(ctx, chromedp.Evaluate[string](`location.href + "\n" + document.body.innerText`))
			tb.Logf("the page at the end: %s (%v)", text, err)
		}
	})

	t.Resize(Desktop)

	return t
}

// Errors returns the errors that pages have logged, and forgets them.
func (t *Tab) Errors() []string {
	t.mu.Lock()
	defer t.mu.Unlock()

	list := t.errors
	t.errors = nil

	return list
}

func (t *Tab) do(steps ...chromedp.Action[chromedp.Void]) {
	t.tb.Helper()

	ctx, cancel := context.WithTimeout(t.ctx, patience)
	defer cancel()

	if err := chromedp.Do(ctx, steps...); err != nil {
		t.tb.Fatal(err)
	}
}

// patience bounds one step of the browser.
const patience = 30 * time.Second

// evaluate returns the value of a script.
func evaluate[T any](t *Tab, script string, options ...chromedp.EvaluateOption) T {
	t.tb.Helper()

	ctx, cancel := context.WithTimeout(t.ctx, patience)
	defer cancel()

	value, err := chromedp.Run(ctx, chromedp.Evaluate[T](script, options...))
	if err != nil {
		t.tb.Fatal(err)
	}

	return value
}

// Open opens a page, and waits until it has loaded.
func (t *Tab) Open(path string) {
	t.tb.Helper()

	ctx, cancel := context.WithTimeout(t.ctx, patience)
	defer cancel()

	opened, err := chromedp.Call(ctx, page.Navigate, page.NavigateParams{URL: t.base + path})
	if err != nil || opened.ErrorText != "" {
		t.tb.Fatalf("opening %s: %v %s", path, err, opened.ErrorText)
	}

	pgtest.Eventually(t.tb, path+" has loaded", func() bool { return evaluate[string](t, `document.readyState`) == "complete" })
}

// Back goes back to the previous page.
func (t *Tab) Back() {
	t.tb.Helper()
	evaluate[json.RawMessage](t, `history.back(); null`)
}

// Hide hides the page, as behind another tab, or shows it again.
func (t *Tab) Hide(hidden bool) {
	t.tb.Helper()
	evaluate[bool](t, fmt.Sprintf(`Object.defineProperty(document, "hidden", {value: %t, configurable: true}); document.dispatchEvent(new Event("visibilitychange"))`, hidden))
}

// Resize changes the width of the tab.
func (t *Tab) Resize(width int64) {
	t.tb.Helper()
	t.do(chromedp.EmulateViewport(width, height))
}

// Dark changes the colours to those of a dark or a light theme.
func (t *Tab) Dark(dark bool) {
	t.tb.Helper()

	scheme := "light"
	if dark {
		scheme = "dark"
	}

	_, err := chromedp.Call(t.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}, {Name: "prefers-reduced-motion", Value: "reduce"}},
	})
	if err != nil {
		t.tb.Fatal(err)
	}
}

// Cookie stores a cookie for the site.
func (t *Tab) Cookie(name, value string) {
	t.tb.Helper()

	_, err := chromedp.Call(t.ctx, network.SetCookie, network.SetCookieParams{Name: name, Value: value, URL: t.base})
	if err != nil {
		t.tb.Fatal(err)
	}
}

// Path returns the path and the query of the page.
func (t *Tab) Path() string {
	t.tb.Helper()

	return evaluate[string](t, `location.pathname + location.search`)
}

// Status returns the HTTP status of the page.
func (t *Tab) Status() int {
	t.tb.Helper()

	return evaluate[int](t, `performance.getEntriesByType("navigation")[0].responseStatus`)
}

// Markup returns the page as HTML.
func (t *Tab) Markup() string {
	t.tb.Helper()

	return evaluate[string](t, `document.documentElement.outerHTML`)
}

// Links returns the paths and queries that the page's links within the site lead to.
func (t *Tab) Links() []string {
	t.tb.Helper()

	return evaluate[[]string](t, `[...document.links].filter(a => a.origin === location.origin).map(a => a.pathname + a.search)`)
}

// Actions returns the names of all by which the page can ask for a change: the buttons of
// forms that post, and the fields that are posted while one types.
func (t *Tab) Actions() []string {
	t.tb.Helper()

	return evaluate[[]string](t, `[...document.querySelectorAll("form[method=post] button:not([type=button]), form[method=post] input[type=submit], [hx-post], [hx-put], [hx-patch], [hx-delete]")]
		.map(e => e.innerText || e.name || e.id)`)
}

// Text returns what the page says.
func (t *Tab) Text() string {
	t.tb.Helper()

	return evaluate[string](t, `document.readyState === "complete" ? document.body.innerText : ""`)
}

// See waits until the page says all of these texts.
func (t *Tab) See(texts ...string) {
	t.tb.Helper()

	for _, text := range texts {
		pgtest.Eventually(t.tb, fmt.Sprintf("the page %s says %q", t.Path(), text), func() bool { return strings.Contains(t.Text(), text) })
	}
}

// focused describes the focused element: what a person hears of it.
const focused = `(() => {
	const e = document.activeElement;
	if (!e || e === document.body) return "";
	const label = e.labels && e.labels.length ? e.labels[0].innerText : "";
	return (e.getAttribute("aria-label") || label || e.innerText || e.value || "").trim().replace(/\s+/g, " ");
})()`

// most is the maximum number of times that Tab is pressed to reach something.
const most = 600

// Reach presses Tab until what has this name, or a name that begins with it, is focused.
func (t *Tab) Reach(name string) {
	t.tb.Helper()

	var passed []string

	for range most {
		at := evaluate[string](t, focused)
		if at == name || strings.HasPrefix(at, name) {
			return
		}

		if !slices.Contains(passed, at) {
			passed = append(passed, at)
		}

		t.do(chromedp.KeyEvent(kb.Tab))
	}

	t.tb.Fatalf("on %s, Tab never reaches %q; it reaches:\n%s", t.Path(), name, strings.Join(passed, "\n"))
}

// Press reaches a link or a button and presses Enter.
func (t *Tab) Press(name string) {
	t.tb.Helper()
	t.Reach(name)
	t.do(chromedp.KeyEvent(kb.Enter))
}

// Tick reaches a checkbox or a radio button and presses Space.
func (t *Tab) Tick(name string) {
	t.tb.Helper()
	t.Reach(name)
	t.do(chromedp.KeyEvent(" "))
}

// Fill reaches a field and replaces its text.
func (t *Tab) Fill(name, text string) {
	t.tb.Helper()
	t.Reach(name)
	t.do(chromedp.KeyEvent("a", chromedp.KeyModifiers(kb.ModifierCtrl)), chromedp.KeyEvent(kb.Delete), chromedp.KeyEvent(text))
}

// Type presses keys; see package kb for those without a character.
func (t *Tab) Type(keys string) {
	t.tb.Helper()
	t.do(chromedp.KeyEvent(keys))
}

// violation is a rule of axe-core that a page breaks.
type violation struct {
	ID    string `json:"id"`
	Help  string `json:"help"`
	Nodes []struct {
		HTML    string `json:"html"`
		Summary string `json:"failureSummary"`
	} `json:"nodes"`
}

// Accessible fails the test if axe-core reports a violation on the page.
func (t *Tab) Accessible() {
	t.tb.Helper()

	if !evaluate[bool](t, `typeof window.axe === "object"`) {
		evaluate[json.RawMessage](t, axe+`; "loaded"`)
	}

	found := evaluate[[]violation](t, `axe.run().then(r => r.violations.map(v => ({id: v.id, help: v.help, nodes: v.nodes.map(n => ({html: n.html, failureSummary: n.failureSummary}))})))`, chromedp.EvalAwaitPromise)

	for _, v := range found {
		for _, n := range v.Nodes[:min(len(v.Nodes), 3)] {
			t.tb.Errorf("%s: %s: %s\n%s\n%s", t.Path(), v.ID, v.Help, n.HTML, n.Summary)
		}
	}
}

// Overflow returns by how many pixels the page is wider than the tab.
func (t *Tab) Overflow() int {
	t.tb.Helper()

	return evaluate[int](t, `document.documentElement.scrollWidth - document.documentElement.clientWidth`)
}

// Small returns a picture of what the tab shows without scrolling, as WebP: for documents.
func (t *Tab) Small() []byte {
	t.tb.Helper()

	picture, err := chromedp.Call(t.ctx, page.CaptureScreenshot, page.CaptureScreenshotParams{Format: page.CaptureScreenshotFormatWebp, Quality: new(int64(webpQuality))})
	if err != nil {
		t.tb.Fatal(err)
	}

	return picture.Data
}

// Picture returns a picture of the whole page, as PNG.
func (t *Tab) Picture() []byte {
	t.tb.Helper()

	ctx, cancel := context.WithTimeout(t.ctx, patience)
	defer cancel()

	picture, err := chromedp.Run(ctx, chromedp.FullScreenshot(100)) // without loss
	if err != nil {
		t.tb.Fatal(err)
	}

	return picture
}
