package console_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/millracehq/millrace/internal/engine/access"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/test/apptest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

const placed = `{"order":{"id":"order_123","product_id":"product_1","quantity":2,"total_amount":99.99}}`

// withOrder opens a browser on a service that has completed an order.
func withOrder(t *testing.T) *browser {
	t.Helper()

	b := open(t)
	b.completeOrder()

	return b
}

func (b *browser) completeOrder() {
	b.t.Helper()

	b.Seed()
	b.Publish("orders.created", placed)
	b.WaitForOrder("order_123", "completed")
	b.WaitUntilIdle()
}

func TestAnOrderIsShownAtAnyVersion(t *testing.T) {
	t.Parallel()

	b := withOrder(t)
	b.get("/console/orders").has(t, `href="/console/orders/order_123"`)

	if p := b.get("/console/orders?id=order_123"); p.url.Path != "/console/orders/order_123" {
		t.Errorf("an id leads to %s", p.url)
	}

	b.get("/console/orders/order_123").has(t, "States. Path taken: created, then inventory_reserved, then paid, then completed.",
		"both agree", `href="/console/products/product_1"`, "fulfilment.charge", `max="4"`, "txn_")

	p := b.get("/console/orders/order_123?version=2")
	p.has(t, "At version 2 of 4", "Path taken: created, then inventory_reserved.")
	p.lacks(t, "<dt>Captured</dt>", "sse-connect")

	for _, path := range []string{"/console/orders/order_123?version=5", "/console/orders/order_123?version=x", "/console/products/product_1?version=1"} {
		if p := b.get(path); p.status != http.StatusUnprocessableEntity {
			t.Errorf("%s: %d", path, p.status)
		}
	}

	if p := b.get("/console/orders/nothing"); p.status != http.StatusNotFound {
		t.Errorf("an order that does not exist: %d", p.status)
	}
}

func TestAConversationIsFoundByEachOfItsIDs(t *testing.T) {
	t.Parallel()

	b := withOrder(t)
	first, last := b.Messages("orders.created", 1)[0].ID.String(), b.Messages("orders.completed", 1)[0].ID.String()

	for _, id := range []string{first, last, "order_123", " order_123 "} {
		p := b.get("/console/conversations?id=" + strings.ReplaceAll(id, " ", "+"))
		p.has(t, "orders.created", "payments.requested", "orders.completed", "complete in", "A producer sent orders.created to fulfilment.place")

		if strings.Count(p.html, "this one") != strings.Count(id, "-")/4 { // one for the id of a message
			t.Errorf("%q: the message that was asked for is marked %d times", id, strings.Count(p.html, "this one"))
		}
	}

	b.get("/console/conversations").has(t, "What happened to a message")
	b.get("/console/conversations?id=nothing").has(t, "There is no message, stream or failed message with the id or key nothing")
}

func TestAConversationWithAStoppedMessageIsOpen(t *testing.T) {
	t.Parallel()

	b := open(t)
	b.Publish("user.created", `{"user":{"id":"alice","name":"Alice","email":"alice@home.example"}}`)
	b.publishUnchecked("user.updated", "alice", `{"user_id":"alice","updates":7}`)

	p := b.get("/console/conversations?id=alice")
	p.has(t, "1 open", "sse-connect", "updates: is a JSON number", `href="/console/failures/1"`)
}

func TestViewersSeeNoPersonalDataOfThings(t *testing.T) {
	t.Parallel()

	b := open(t, guarded)
	b.Publish("user.created", `{"user":{"id":"alice","name":"Alice Liddell","email":"alice@home.example","tier":"gold"}}`)
	b.publishUnchecked("user.updated", "alice", `{"user_id":"alice","updates":"Liddell"}`)
	b.Seed()
	b.Publish("orders.created", strings.ReplaceAll(placed, `"quantity":2`, `"quantity":2000`))
	b.WaitForOrder("order_123", "inventory_unavailable")

	viewer, operator := b.as(access.Viewer), b.as(access.Operator)

	operator.get("/console/users/alice").has(t, "Alice Liddell", "alice@home.example", "gold")

	for _, path := range []string{"/console/users/alice", "/console/users", "/console/conversations?id=alice"} {
		viewer.get(path).lacks(t, "Liddell", "alice@home.example", "gold")
	}

	viewer.get("/console/orders/order_123").has(t, "inventory_unavailable")
}

func TestAnAuditIsRunAndRepaired(t *testing.T) {
	t.Parallel()

	b := withOrder(t)
	b.get("/console/audit").has(t, "This process has not run an audit yet", "reservations", "not checked")

	if _, err := b.Pool.Exec(t.Context(), `UPDATE stock SET sold = sold + 3, available = available - 3 WHERE product_id = 'product_1'`); err != nil {
		t.Fatal(err)
	}

	b.audited("mode", "check").has(t, "1 violation of 1 invariant", "5 sold, but completed orders received 2", "Preview the repair of 1")
	b.audited("mode", "preview", "only", "reservations").has(t, "Dry run: 1 would be repaired", "Repair 1")

	if n := apptest.Value[int](b.Service, `SELECT sold FROM stock WHERE product_id = 'product_1'`); n != 5 {
		t.Errorf("the dry run has changed sold to %d", n)
	}

	b.audited("mode", "repair", "only", "reservations", "why", "counted by hand").has(t, "1 repaired", "1 invariant holds")

	if who := apptest.Value[string](b.Service, `SELECT action || ' ' || who || ' ' || why FROM operator_actions`); who != "repaired console counted by hand" {
		t.Errorf("recorded: %s", who)
	}

	if p := b.post("/console/audit", "mode", "burn"); p.status != http.StatusNotFound {
		t.Errorf("an unknown mode: %d", p.status)
	}
}

// audited starts an audit and returns the page once it has ended.
func (b *browser) audited(fields ...string) (p shown) {
	b.t.Helper()

	b.post("/console/audit", fields...)
	pgtest.Eventually(b.t, "the audit ends", func() bool {
		p = b.get("/console/audit")

		return strings.Contains(p.html, "Audited by")
	})

	return p
}

func TestViewersDoNotRunAudits(t *testing.T) {
	t.Parallel()

	b := open(t, guarded)
	viewer := b.as(access.Viewer)
	viewer.get("/console/audit").lacks(t, "Run the audit")

	if p := viewer.post("/console/audit", "mode", "check"); p.status != http.StatusForbidden {
		t.Errorf("a viewer starts an audit: %d", p.status)
	}

	b.as(access.Operator).audited("mode", "check").has(t, "invariants hold")
	viewer.get("/console/audit").has(t, "invariants hold")
}

// publishUnchecked publishes a message that its consumer stops, and waits until it has.
func (b *browser) publishUnchecked(topic, key, payload string) {
	b.t.Helper()

	before := apptest.Value[int](b.Service, `SELECT count(*) FROM failed_messages`)
	b.PublishMessage(event.Message{Topic: topic, Key: key, Payload: []byte(payload)})
	pgtest.Eventually(b.t, "the message is stopped", func() bool {
		return apptest.Value[int](b.Service, `SELECT count(*) FROM failed_messages WHERE state = 'stopped'`) > before
	})
}
