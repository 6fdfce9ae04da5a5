package console_test

import (
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp/kb"

	"github.com/millracehq/millrace/internal/config"
	"github.com/millracehq/millrace/internal/engine/access"
	"github.com/millracehq/millrace/internal/test/apptest"
	"github.com/millracehq/millrace/internal/test/browsertest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// tab opens a tab of Chromium on the service.
func (b *browser) tab() *browsertest.Tab {
	b.t.Helper()

	return browsertest.New(b.t, "http://"+b.HTTPAddr())
}

// picture writes a picture into a directory of the repository.
func picture(t *testing.T, dir, name string, data []byte) {
	t.Helper()

	dir = filepath.Join(pgtest.Root(), dir)
	if err := os.MkdirAll(dir, 0o750); err != nil {
		t.Fatal(err)
	}

	if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// screens returns the paths of all screens of a service with an incident; see
// withIncident.
func (b *browser) screens() (paths []string) {
	b.t.Helper()

	for _, match := range regexp.MustCompile(`<li><a href="(/console/[^"]+)"`).FindAllStringSubmatch(b.get("/console/now").html, -1) {
		paths = append(paths, match[1])
	}

	// The screen Now comes late, when it has something to show of the last minutes.
	paths = slices.DeleteFunc(paths, func(path string) bool { return path == "/console/now" })

	return append(paths, "/console/conversations?id=order_123", "/console/orders/order_123", "/console/orders/order_123?version=2",
		"/console/users/alice", "/console/products/product_1", "/console/failures/1", "/console/failures/edit?state=stopped", "/console/failures/replay?state=stopped",
		"/console/failures/discard?state=stopped", "/console/failures?state=all", "/console/consumers/account.update", b.link("/console/failures", `/console/failures\?group=\w+`), b.link("/console/waiting", `/console/waiting/\d+`),
		"/console/docs/openapi", "/console/docs/asyncapi/orders.created", "/console/docs/asyncapi/orders.completed", "/console/now", "/console/nothing")
}

// link returns the first link of a page that matches a pattern.
func (b *browser) link(path, pattern string) string {
	b.t.Helper()

	found := regexp.MustCompile(`href="(` + pattern + `)"`).FindStringSubmatch(b.get(path).html)
	if found == nil {
		b.t.Fatalf("%s has no link to %s", path, pattern)
	}

	return found[1]
}

// withIncident opens a browser on a service in which much needs attention.
func withIncident(t *testing.T) *browser {
	t.Helper()

	b := open(t, patient)
	b.incident()

	return b
}

// patient keeps messages waiting for what they await during a test that takes long.
func patient(c *config.Config) { c.Consumer.AwaitTimeout = time.Hour }

// incident leaves an order that is completed, failures with three causes, a user with a
// message that is stopped, one whose messages wait, a consumer that is paused, and stock
// that violates an invariant. Whoever reads Liddell reads personal data.
func (b *browser) incident() {
	b.t.Helper()

	b.completeOrder()
	b.Publish("user.created", `{"user":{"id":"alice","name":"Alice Liddell","email":"alice@home.example"}}`)
	b.publishUnchecked("user.updated", "alice", `{"user_id":"alice","updates":"Liddell"}`)

	for n := range 12 {
		b.stop(fmt.Sprintf("order_%d", 200+n), order(fmt.Sprintf("order_%d", 200+n), 0), "order.quantity: is 0, expected at least 1")
	}

	for n := range 3 {
		b.stop(fmt.Sprintf("order_%d", 300+n), fmt.Sprintf(`{"order":{"total_amount":12.50,"id":"order_%d","quantity":1}}`, 300+n), "order.product_id: is missing")
	}

	// They have failed over a day.
	if _, err := b.Pool.Exec(b.t.Context(), `UPDATE failed_messages SET first_at = first_at - id * id % 23 * interval '1 hour' WHERE id > 1`); err != nil {
		b.t.Fatal(err)
	}

	b.Publish("user.updated", `{"user_id":"lorina","updates":{"name":"Lorina Liddell"}}`)
	b.Publish("user.updated", `{"user_id":"lorina","updates":{"email":"lorina@home.example"}}`)
	pgtest.Eventually(b.t, "the updates of an unknown user wait", func() bool {
		return apptest.Value[int](b.Service, `SELECT count(*) FROM failed_messages WHERE state = 'waiting'`) == 2
	})

	if _, err := b.Router.Pause(b.t.Context(), "fulfilment.charge", 0, actor("ada", "Mrs Liddell has called")); err != nil {
		b.t.Fatal(err)
	}

	if _, err := b.Pool.Exec(b.t.Context(), `UPDATE stock SET sold = sold + 3, available = available - 3 WHERE product_id = 'product_1'`); err != nil {
		b.t.Fatal(err)
	}

	b.audited("mode", "check")
}

// documented are the screens whose pictures are in the documentation, at 1440 pixels.
var documented = map[string]struct{ theme, file string }{
	"orders-order_123": {"light", "order"}, "conversations-id-order_123": {"dark", "conversation"}, "failures": {"light", "failures"}, "now": {"light", "now"}, "audit": {"light", "audit"}, "docs-asyncapi-orders-created": {"light", "docs"},
}

func TestBrowserScreensAreAccessibleAndFit(t *testing.T) {
	t.Parallel()

	b := withIncident(t)
	tab := b.tab()

	for _, path := range b.screens() {
		name := strings.Trim(regexp.MustCompile(`[^a-z0-9_]+`).ReplaceAllString(strings.TrimPrefix(path, "/console"), "-"), "-")

		tab.Open(path)

		for _, theme := range []string{"light", "dark"} {
			tab.Dark(theme == "dark")

			for _, width := range []int64{browsertest.Phone, browsertest.Desktop} {
				tab.Resize(width)
				tab.Accessible()

				if n := tab.Overflow(); n > 0 {
					t.Errorf("%s is %d pixels wider than %d", path, n, width)
				}

				picture(t, filepath.Join(".local", "console"), fmt.Sprintf("%s-%d-%s.png", name, width, theme), tab.Picture())
			}

			if d := documented[name]; d.theme == theme && os.Getenv("MILLRACE_TEST_PICTURES") != "" {
				picture(t, filepath.Join("docs", "images"), "console-"+d.file+".webp", tab.Small())
			}
		}

		if strings.HasSuffix(path, "/nothing") {
			tab.Errors() // that it is not found
		}
	}
}

func TestBrowserFindsAnOrderFromItsID(t *testing.T) {
	t.Parallel()

	tab := withOrder(t).tab()
	tab.Open("/console/now")
	tab.Press("Orders")
	tab.Fill("Id of the order", "order_123")
	tab.Type(kb.Enter)
	tab.See("Order order_123", "both agree", "complete in", "orders.completed")

	// Back to the time when it was paid, by the slider, and further by a link.
	tab.Reach("Version")
	tab.Type(kb.ArrowLeft)
	tab.See("At version 3 of 4")
	tab.Press("Previous version")
	tab.See("At version 2 of 4")

	tab.Press("Conversation of version 2")
	tab.See("complete in", "this one")
}

func TestBrowserRunsAnAuditAndPreviewsARepair(t *testing.T) {
	t.Parallel()

	tab := withIncident(t).tab()
	tab.Open("/console/audit")
	tab.Press("Run the audit")
	tab.See("1 violation of 1 invariant", "5 sold, but completed orders received 2")
	tab.Press("Preview the repair of 1")
	tab.See("Dry run: 1 would be repaired", "Would be repaired")
	tab.Fill("Reason", "counted by hand")
	tab.Press("Repair 1")
	tab.See("1 repaired", "1 invariant holds")
}

// A viewer follows links to every screen, three of each kind. No page offers to change
// anything, or has personal data.
func TestBrowserShowsViewersEverythingButActionsAndPersonalData(t *testing.T) {
	t.Parallel()

	olga := open(t, guarded, patient).as(access.Operator)
	olga.incident()
	vera := olga.as(access.Viewer)

	tab := olga.tab()
	tab.Open("/console/users/alice")
	tab.See("Log in")
	tab.Fill("Token", olga.token("vera", access.Viewer))
	tab.Type(kb.Enter)
	tab.See("User alice", "(hidden from viewers)", "vera (viewer)")

	personal := regexp.MustCompile(`Liddell|home\.example`)
	paths, kinds := []string{tab.Path()}, map[string]int{}

	for at := 0; at < len(paths); at++ {
		path := paths[at]

		if strings.Contains(path, ".csv") || strings.Contains(path, ".json") {
			if p := vera.get(path); p.status != http.StatusOK || personal.MatchString(p.html) {
				t.Errorf("%s: got %d with %q", path, p.status, personal.FindString(p.html))
			}

			continue
		}

		tab.Open(path)

		if status := tab.Status(); status != http.StatusOK {
			t.Errorf("%s is linked, and answers a viewer with %d", path, status)
		}

		if found := personal.FindString(tab.Markup()); found != "" {
			t.Errorf("%s shows %q to a viewer", path, found)
		}

		if actions := tab.Actions(); !slices.Equal(actions, []string{"Log out"}) {
			t.Errorf("%s offers a viewer %q", path, actions)
		}

		for _, link := range tab.Links() {
			if kind := kindOf(link); !slices.Contains(paths, link) && kinds[kind] < 3 {
				paths, kinds[kind] = append(paths, link), kinds[kind]+1
			}
		}
	}

	for _, screen := range []string{"/console/failures/1", "/console/waiting/", "/console/audit", "/console/activity.csv", "/console/orders/order_123", "/console/docs/asyncapi/notifications"} {
		if !slices.ContainsFunc(paths, func(path string) bool { return strings.HasPrefix(path, screen) }) {
			t.Errorf("no link leads to %s, only to %q", screen, paths)
		}
	}
}

// kindOf returns what links to the same screen have in common.
func kindOf(link string) string {
	path, query, _ := strings.Cut(link, "?")
	segments := strings.Split(path, "/")
	kind := fmt.Sprint(segments[:min(len(segments), 3)], len(segments))

	if fields, err := url.ParseQuery(query); err == nil {
		fields.Del("paused")

		kind += fmt.Sprint(slices.Sorted(maps.Keys(fields)))
	}

	return kind
}
