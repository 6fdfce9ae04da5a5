package console_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/chromedp/chromedp/kb"

	"github.com/millracehq/millrace/internal/engine/access"
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

	return append(paths, "/console/conversations?id=order_123", "/console/orders/order_123", "/console/orders/order_123?version=2",
		"/console/users/alice", "/console/products/product_1", "/console/failures/1", "/console/failures/edit?state=stopped", "/console/failures/replay?state=stopped",
		"/console/failures/discard?state=stopped", "/console/consumers/account.update", "/console/nothing")
}

// withIncident opens a browser on a service with an order that is completed, a user with
// a message that is stopped, and stock that violates an invariant.
func withIncident(t *testing.T) *browser {
	t.Helper()

	b := withOrder(t)
	b.Publish("user.created", `{"user":{"id":"alice","name":"Alice","email":"alice@home.example"}}`)
	b.publishUnchecked("user.updated", "alice", `{"user_id":"alice","updates":7}`)

	if _, err := b.Pool.Exec(t.Context(), `UPDATE stock SET sold = sold + 3, available = available - 3 WHERE product_id = 'product_1'`); err != nil {
		t.Fatal(err)
	}

	b.audited("mode", "check")

	return b
}

// documented are the screens whose pictures are in the documentation, at 1440 pixels.
var documented = map[string]struct{ theme, file string }{
	"orders-order_123": {"light", "order"}, "conversations-id-order_123": {"dark", "conversation"}, "failures": {"light", "failures"}, "audit": {"light", "audit"},
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

func TestBrowserMasksFieldsForViewers(t *testing.T) {
	t.Parallel()

	b := open(t, guarded)
	b.Publish("user.created", `{"user":{"id":"alice","name":"Alice Liddell","email":"alice@home.example"}}`)
	b.publishUnchecked("user.updated", "alice", `{"user_id":"alice","updates":"Liddell"}`)

	tab := b.tab()
	tab.Open("/console/users/alice")
	tab.See("Log in")
	tab.Fill("Token", b.token("vera", access.Viewer))
	tab.Type(kb.Enter)
	tab.See("User alice", "(hidden from viewers)", "vera (viewer)")

	if strings.Contains(tab.Text(), "Liddell") {
		t.Error("a viewer sees a name")
	}

	tab.Open("/console/audit")
	tab.See("Operators run the audit")

	if strings.Contains(tab.Text(), "Run the audit") {
		t.Error("a viewer may run an audit")
	}
}
