package console

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/millracehq/millrace/internal/httpapi"
)

// Timing of live updates.
const (
	pollEvery   = time.Second
	pollTimeout = 10 * time.Second
	// beatEvery is how often an idle stream sends something, which finds clients that
	// have gone and keeps proxies from closing it.
	beatEvery = 15 * time.Second
	// streamFor bounds a stream. The browser reconnects, and is authenticated again.
	streamFor = 5 * time.Minute
	// writeTimeout bounds one write to a stream.
	writeTimeout = 10 * time.Second
)

// hub keeps the pages up to date that somebody looks at. It has one poller, which runs
// only while there are such pages, and polls one page at a time: the one that it polled
// longest ago. However many people look, the database is polled once a second.
type hub struct {
	logger *slog.Logger
	done   chan struct{}
	once   sync.Once

	mu      sync.Mutex
	views   map[string]*view
	polling bool
}

// view is a page that somebody looks at; those who see the same share it.
type view struct {
	render func() ([]byte, error)
	// html is the last version, and trouble says why there is no newer one.
	html     []byte
	trouble  string
	polled   time.Time
	watchers map[chan struct{}]bool
}

func newHub(logger *slog.Logger) *hub {
	return &hub{logger: logger, done: make(chan struct{}), views: map[string]*view{}}
}

// close ends all streams.
func (h *hub) close() { h.once.Do(func() { close(h.done) }) }

// watch adds a watcher of the view called key, and returns a function that removes it.
// changed receives a value after each change.
func (h *hub) watch(key string, render func() ([]byte, error)) (v *view, changed chan struct{}, leave func()) {
	h.mu.Lock()
	defer h.mu.Unlock()

	v = h.views[key]
	if v == nil {
		v = &view{render: render, watchers: map[chan struct{}]bool{}}
		h.views[key] = v
	}

	changed = make(chan struct{}, 1)
	v.watchers[changed] = true

	if v.html != nil {
		changed <- struct{}{}
	}

	if !h.polling {
		h.polling = true

		go h.poll()
	}

	return v, changed, func() {
		h.mu.Lock()
		defer h.mu.Unlock()

		if delete(v.watchers, changed); len(v.watchers) == 0 {
			delete(h.views, key)
		}
	}
}

// poll polls until nobody looks.
func (h *hub) poll() {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()

	for {
		v := h.next()
		if v == nil {
			return
		}

		html, err := v.render()
		h.update(v, html, err)

		select {
		case <-tick.C:
		case <-h.done:
		}
	}
}

// next returns the view that was polled longest ago. If there is none, polling has ended.
func (h *hub) next() (oldest *view) {
	h.mu.Lock()
	defer h.mu.Unlock()

	select {
	case <-h.done:
		h.polling = false

		return nil
	default:
	}

	for _, v := range h.views {
		if oldest == nil || v.polled.Before(oldest.polled) {
			oldest = v
		}
	}

	if h.polling = oldest != nil; oldest != nil {
		oldest.polled = time.Now()
	}

	return oldest
}

// update tells the watchers of a view if it has changed.
func (h *hub) update(v *view, html []byte, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()

	trouble := ""

	if err != nil {
		trouble = "This page cannot be updated at present. The screen Now shows what is wrong."
		html = v.html

		if v.trouble == "" {
			h.logger.Warn("a page could not be updated", slog.Any("error", err))
		}
	}

	if bytes.Equal(html, v.html) && trouble == v.trouble {
		return
	}

	v.html, v.trouble = html, trouble

	for changed := range v.watchers {
		select {
		case changed <- struct{}{}:
		default: // it has not read the previous change yet, and will read this one
		}
	}
}

// read returns the last version of a view.
func (h *hub) read(v *view) (html []byte, trouble string) {
	h.mu.Lock()
	defer h.mu.Unlock()

	return v.html, v.trouble
}

// stream sends the body of a page to a browser whenever it changes.
func (c *Console) stream(w http.ResponseWriter, r *http.Request, s screen) {
	v, changed, leave := c.hub.watch(string(httpapi.IdentityOf(r.Context()).Role)+" "+r.URL.RequestURI(), func() ([]byte, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), pollTimeout)
		defer cancel()

		return body(s, r.WithContext(ctx))
	})
	defer leave()

	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no")

	end, beat := time.NewTimer(streamFor), time.NewTicker(beatEvery)
	defer end.Stop()
	defer beat.Stop()

	out := events{w, http.NewResponseController(w)}
	for err := out.send(": open\n\n"); err == nil; {
		select {
		case <-changed:
			html, trouble := c.hub.read(v)
			err = out.event("trouble", []byte(trouble))

			if err == nil && trouble == "" {
				err = out.event("update", html)
			}
		case <-beat.C:
			err = out.send(": beat\n\n")
		case <-end.C:
			return
		case <-r.Context().Done():
			return
		case <-c.hub.done:
			return
		}
	}
}

// body returns the body of a page.
func body(s screen, r *http.Request) ([]byte, error) {
	p, err := s(r)
	if err != nil {
		return nil, err
	}

	var html bytes.Buffer
	err = p.Body.Render(r.Context(), &html)

	return html.Bytes(), err
}

// events writes server-sent events.
type events struct {
	http.ResponseWriter

	*http.ResponseController
}

func (e events) send(text string) error {
	if err := e.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return fmt.Errorf("extending the time of a stream: %w", err)
	}

	if _, err := e.Write([]byte(text)); err != nil {
		return err
	}

	return e.Flush()
}

func (e events) event(name string, data []byte) error {
	var b bytes.Buffer

	b.WriteString("event: " + name + "\n")

	for line := range bytes.SplitSeq(bytes.ReplaceAll(data, []byte("\r"), nil), []byte("\n")) {
		b.WriteString("data: ")
		b.Write(line)
		b.WriteByte('\n')
	}

	b.WriteByte('\n')

	return e.send(b.String())
}
