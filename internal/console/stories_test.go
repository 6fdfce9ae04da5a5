package console_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/chromedp/chromedp/kb"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/test/apptest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// A producer has sent 1,000 updates of 300 users with an address that is none. The person
// who looks edits them all and replays them, with three actions: see what would change,
// edit, replay.
func TestBrowserEditsAndReplaysAThousandFailures(t *testing.T) {
	t.Parallel()

	const users, updates = 300, 1000

	b := open(t)

	var messages []event.Message

	for n := range users {
		id := fmt.Sprintf("user_%d", n)
		messages = append(messages, event.Message{ID: event.NewID(), Topic: "user.created", Key: id, Payload: fmt.Appendf(nil, `{"user":{"id":%q,"name":"Name","email":"a@home.example"}}`, id)})
	}

	for n := range updates {
		id := fmt.Sprintf("user_%d", n%users)
		messages = append(messages, event.Message{ID: event.NewID(), Topic: "user.updated", Key: id, Payload: fmt.Appendf(nil, `{"user_id":%q,"updates":{"name":"Name %d","email":"none"}}`, id, n)})
	}

	for part := range slices.Chunk(messages, 100) {
		if err := b.Operator.Publish(t.Context(), part); err != nil {
			t.Fatal(err)
		}
	}

	pgtest.Eventually(t, "the updates are stopped", func() bool {
		return apptest.Value[int](b.Service, `SELECT count(*) FROM failed_messages WHERE state = 'stopped'`) == updates
	})

	tab := b.tab()
	tab.Open("/console/failures")
	tab.See("1000 messages in 1 group", "300", "account.update")

	tab.Press("Edit many")
	tab.Fill("Changes", `{"updates":{"email":null}}`)
	tab.Press("Show what would change")
	tab.See("Dry run", "nothing has changed yet")
	tab.Press("Edit 1000")
	tab.See("edited")
	tab.Press("Replay them in order")
	tab.Press("Replay 1000")
	tab.See("All 1000 messages have been tried", "All messages have been requeued")

	pgtest.Eventually(t, "every update is applied", func() bool {
		return apptest.Value[int](b.Service, `SELECT count(*) FROM failed_messages WHERE resolution = 'applied'`) == updates
	})

	wrong := apptest.Value[int](b.Service, `
		SELECT count(*) FROM (
			SELECT e.stream, array_agg(f.id ORDER BY e.version) AS applied, array_agg(f.id ORDER BY f.id) AS arrived
			FROM events e JOIN failed_messages f USING (message_id) GROUP BY e.stream) AS s
		WHERE applied <> arrived`)
	if wrong != 0 {
		t.Errorf("the updates of %d users were applied in another order than they arrived in", wrong)
	}
}

func TestBrowserPausesAndResumesAConsumer(t *testing.T) {
	t.Parallel()

	b := open(t)
	b.Seed()

	tab := b.tab()
	tab.Open("/console/consumers")
	tab.Press("fulfilment.place")
	tab.Fill("Reason", "looking into it")
	tab.Press("Show what a pause would affect")
	tab.See("A pause of fulfilment.place on all replicas would mean")
	tab.Press("Pause fulfilment.place")

	pgtest.Eventually(t, "the consumer is paused", func() bool {
		return apptest.Value[int](b.Service, `SELECT count(*) FROM paused_consumers WHERE why = 'looking into it'`) == 1
	})

	b.Publish("orders.created", placed)
	tab.Open("/console/now")
	tab.See("fulfilment.place", "looking into it")

	tab.Open("/console/consumers/fulfilment.place")
	tab.Press("Resume")
	tab.See("is resumed on all replicas")
	b.WaitForOrder("order_123", "completed")

	tab.Open("/console/orders")
	tab.Fill("Id of the order", "order_123")
	tab.Type(kb.Enter)
	tab.See("both agree")
}

func TestBrowserTriesOutAMessageFromItsDocumentation(t *testing.T) {
	t.Parallel()

	b := open(t)
	b.Seed()

	tab := b.tab()
	tab.Open("/docs/asyncapi")
	tab.Press("orders.created")
	tab.See("Try it out", "order.quantity")

	// The consumers check what is typed.
	tab.Fill("Payload", strings.Replace(placed, `"quantity":2`, `"quantity":"two"`, 1))
	tab.See("order.quantity: is a JSON string, expected a whole number")
	tab.Fill("Payload", placed)
	tab.See("The consumers accept this payload.")

	tab.Fill("Reason", "to show how it works")
	tab.Press("Publish to orders.created")
	tab.See("Conversations", "this one", "complete in", "orders.completed")

	tab.Press("Activity")
	tab.See("published", "to show how it works")

	tab.Press("Orders")
	tab.Press("order_123")
	tab.See("Order order_123", "both agree")
}

// A browser has six connections to a site. Pages that nobody sees must not keep them.
func TestBrowserUpdatesPagesWhileTheyAreSeen(t *testing.T) {
	t.Parallel()

	tab := open(t).tab()

	for range 4 {
		tab.Open("/console/consumers")
		tab.Open("/console/now")
	}

	tab.See("Live")
	tab.Hide(true)
	tab.See("Paused while hidden")
	tab.Hide(false)
	tab.See("Live")

	tab.Open("/console/audit")
	tab.Back()
	tab.See("Live")
}
