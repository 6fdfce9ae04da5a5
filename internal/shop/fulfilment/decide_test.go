package fulfilment_test

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/shop/fulfilment"
	"github.com/millracehq/millrace/internal/shop/inventory"
	"github.com/millracehq/millrace/internal/shop/money"
	"github.com/millracehq/millrace/internal/shop/order"
	"github.com/millracehq/millrace/internal/shop/payment"
)

// The commands, by their names in the table below.
var (
	asked    = order.Order{ID: "o", Total: money.MustParse("10"), Currency: "USD", Lines: []order.Line{{ProductID: "p", Quantity: 2}}}
	captured = payment.Outcome{TransactionID: "t"}
	another  = payment.Outcome{TransactionID: "u"}
	commands = map[string]fulfilment.Command{
		"place":            fulfilment.Place{Asked: asked},
		"place short":      fulfilment.Place{Asked: asked, Short: &inventory.Shortage{ProductID: "p", Requested: 2, Available: 1}},
		"place other":      fulfilment.Place{Asked: order.Order{ID: "o", Total: money.MustParse("11"), Currency: "USD", Lines: asked.Lines}},
		"captured":         fulfilment.Settle{Outcome: captured},
		"captured again":   fulfilment.Settle{Outcome: another, Attempt: 2},
		"captured less":    fulfilment.Settle{Outcome: captured, Money: &fulfilment.Money{Amount: money.MustParse("9"), Currency: "USD"}},
		"declined":         fulfilment.Settle{Outcome: payment.Outcome{Declined: "no money"}},
		"not charged":      fulfilment.Settle{},
		"complete":         fulfilment.Complete{},
		"cancel":           fulfilment.Cancel{Reason: "why"},
		"cancel, captured": fulfilment.Cancel{Reason: "why", Found: captured},
		"expire":           fulfilment.Expire{},
		"expire, captured": fulfilment.Expire{Found: captured},
		"expire, declined": fulfilment.Expire{Found: payment.Outcome{Declined: "no money"}},
		"refunded":         fulfilment.Refunded{TransactionID: "t", RefundID: "r"},
		"refunded again":   fulfilment.Refunded{TransactionID: "u", RefundID: "s"},
		"refunded by hand": fulfilment.Refunded{TransactionID: "t", RefundID: "s"},
		"refund failed":    fulfilment.FailRefund{TransactionID: "t", RefundID: "r", Reason: "lost card"},
		"disputed":         fulfilment.Dispute{TransactionID: "t", Reason: "fraudulent (dp)"},
		"refunded part":    fulfilment.Refunded{TransactionID: "t", RefundID: "r", Money: &fulfilment.Money{Amount: money.MustParse("9"), Currency: "USD"}},
	}
)

// after returns the order that results from a story of commands.
func after(tb testing.TB, story string) order.Order {
	tb.Helper()

	o := order.Order{ID: "o"}

	for name := range strings.SplitSeq(story, "; ") {
		if name == "" {
			continue
		}

		d, err := fulfilment.Decide(o, commands[name])
		if err != nil {
			tb.Fatalf("%s: %s: %v", story, name, err)
		}

		o = d.Order
	}

	return o
}

// render shows a decision in one line: events -> state [stock] refunds ! messages.
func render(d fulfilment.Decision, err error) string {
	if _, rejected := errors.AsType[*event.RejectError](err); rejected {
		return "rejected: " + err.Error()
	}

	if err != nil {
		return "error: " + err.Error()
	}

	var parts []string
	for _, data := range d.Events {
		parts = append(parts, data.EventType())
	}

	parts = append(parts, "->", string(d.Order.Status))
	if d.Stock != fulfilment.KeepStock {
		parts = append(parts, "["+string(d.Stock)+"]")
	}

	for _, r := range d.Refunds {
		parts = append(parts, fmt.Sprintf("refund %s of %s %s (%s)", r.TransactionID, r.Amount, r.Currency, r.Reason))

		if r.FailedRefundID != "" {
			parts = append(parts, "after "+r.FailedRefundID)
		}
	}

	for _, p := range d.Publish {
		parts = append(parts, "! "+p.Topic())
	}

	return strings.Join(parts, " ")
}

func TestEveryCommandHasAnAnswerInEveryState(t *testing.T) {
	t.Parallel()

	const (
		refused = " ! orders.cancel.refused"
		late    = "PaymentCapturedLate -> "
	)

	for state, answers := range map[string]map[string]string{
		"": {
			"place":       "OrderCreated InventoryReserved -> inventory_reserved [reserve] ! payments.requested",
			"place short": "OrderCreated InventoryUnavailable -> inventory_unavailable ! orders.rejected",
			"captured":    "error: there is no order o", "declined": "error: there is no order o", "complete": "error: there is no order o",
			"cancel": "error: there is no order o", "expire": "error: there is no order o", "refunded": "error: there is no order o",
			"refund failed": "error: there is no order o", "disputed": "error: there is no order o",
		},
		"place": {
			"place": "-> inventory_reserved", "place other": "rejected: order.id: o exists with a different body, expected a new id or the same order",
			"captured": "OrderPaid -> paid ! orders.completed", "captured less": "rejected: amount: is 9, expected the order's total 10",
			"declined": "PaymentFailed -> payment_failed [release] ! orders.rejected", "not charged": "-> inventory_reserved",
			"complete":         "rejected: order_id: order o is inventory_reserved: OrderCompleted cannot follow",
			"cancel":           "OrderCancelled -> cancelled [release] ! orders.cancelled",
			"cancel, captured": "OrderPaid OrderCancelled -> cancelled [release] refund t of 10 USD (cancelled) ! orders.cancelled",
			"expire":           "OrderExpired -> expired [release] ! orders.expired", "expire, declined": "OrderExpired -> expired [release] ! orders.expired",
			"expire, captured": "OrderPaid -> paid ! orders.completed",
			"refunded":         "OrderPaid OrderCancelled PaymentRefunded -> cancelled [release] ! orders.cancelled ! payments.refunded",
			"refunded part":    "rejected: amount: is 9, expected the order's total 10",
			"refund failed":    "-> inventory_reserved",
		},
		"place; captured": {
			"place": "-> paid", "captured": "-> paid", "declined": "-> paid", "not charged": "-> paid", "expire": "-> paid", "expire, captured": "-> paid",
			"captured again": late + "paid refund u of 10 USD (paid)",
			"complete":       "OrderCompleted -> completed [sell]",
			"cancel":         "OrderCancelled -> cancelled [release] refund t of 10 USD (cancelled) ! orders.cancelled",
			"refunded":       "OrderCancelled PaymentRefunded -> cancelled [release] ! orders.cancelled ! payments.refunded",
			"refunded again": "PaymentCapturedLate PaymentRefunded -> paid ! payments.refunded",
		},
		"place; captured; captured again": { // the second refund is already requested
			"cancel": "OrderCancelled -> cancelled [release] refund t of 10 USD (cancelled) ! orders.cancelled", "captured again": "-> paid",
			"refunded again": "PaymentRefunded -> paid ! payments.refunded", "complete": "OrderCompleted -> completed [sell]",
		},
		"place; captured; complete": {
			"place": "-> completed", "captured": "-> completed", "declined": "-> completed", "complete": "-> completed", "expire": "-> completed",
			"cancel": "-> completed" + refused, "captured again": late + "completed refund u of 10 USD (completed)",
			"refunded": "PaymentRefunded -> completed ! payments.refunded",
			"disputed": "rejected: transaction_id: t is disputed: fraudulent (dp); respond to the dispute with the payment provider, then discard this message",
		},
		"place short": {
			"cancel": "-> inventory_unavailable" + refused, "expire": "-> inventory_unavailable", "declined": "-> inventory_unavailable",
			"captured": late + "inventory_unavailable refund t of 10 USD (inventory_unavailable)",
			"complete": "rejected: order_id: order o is inventory_unavailable: OrderCompleted cannot follow",
		},
		"place; declined": {
			"cancel": "-> payment_failed" + refused, "expire": "-> payment_failed", "declined": "-> payment_failed",
			"captured":         late + "payment_failed refund t of 10 USD (payment_failed)",
			"cancel, captured": late + "payment_failed refund t of 10 USD (payment_failed)" + refused,
			"complete":         "rejected: order_id: order o is payment_failed: OrderCompleted cannot follow",
		},
		"place; expire": {
			"cancel": "-> expired" + refused, "expire": "-> expired", "declined": "-> expired", "not charged": "-> expired",
			"captured": late + "expired refund t of 10 USD (expired)", "expire, captured": late + "expired refund t of 10 USD (expired)",
			"refunded": "PaymentCapturedLate PaymentRefunded -> expired ! payments.refunded",
		},
		"place; cancel": {
			"cancel": "-> cancelled", "expire": "-> cancelled", "declined": "-> cancelled", "complete": "-> cancelled", "not charged": "-> cancelled",
			"captured": late + "cancelled refund t of 10 USD (cancelled)", "cancel, captured": late + "cancelled refund t of 10 USD (cancelled)",
			"refunded": "PaymentCapturedLate PaymentRefunded -> cancelled ! payments.refunded",
		},
		"place; captured; cancel": {
			"captured": "-> cancelled", "cancel": "-> cancelled", "cancel, captured": "-> cancelled", "complete": "-> cancelled",
			"captured again": late + "cancelled refund u of 10 USD (cancelled)", "refunded": "PaymentRefunded -> cancelled ! payments.refunded",
		},
		"place; captured; cancel; refunded": {
			"refunded": "-> cancelled", "captured": "-> cancelled", "cancel": "-> cancelled",
			"refund failed": "PaymentRefundFailed -> cancelled refund t of 10 USD (cancelled) after r ! payments.refund.failed",
		},
		"place; captured; cancel; refunded; refund failed": {
			"refund failed": "-> cancelled", "cancel": "-> cancelled", "refunded by hand": "PaymentRefunded -> cancelled ! payments.refunded",
			"refunded": "-> cancelled refund t of 10 USD (cancelled) after r",
		},
		"place; captured; cancel; refunded; refund failed; refunded by hand": {"refund failed": "-> cancelled", "refunded": "-> cancelled"},
		"place; captured; cancel; refund failed": { // before its success was recorded
			"refunded": "-> cancelled refund t of 10 USD (cancelled) after r", "refunded by hand": "PaymentRefunded -> cancelled ! payments.refunded",
		},
		"place; captured; complete; refunded": { // nothing is owed
			"refund failed": "PaymentRefundFailed -> completed ! payments.refund.failed",
		},
		"place; captured; complete; refunded; refund failed": {"refunded": "-> completed", "refunded by hand": "PaymentRefunded -> completed ! payments.refunded"},
		"place; captured; refund failed":                     {"refunded": "-> paid"},
	} {
		o := after(t, state)

		for name, want := range answers {
			if got := render(fulfilment.Decide(o, commands[name])); got != want {
				t.Errorf("after %q: %s\ngot  %s\nwant %s", state, name, got, want)
			}
		}
	}
}

func TestTheDesignShowsTheStates(t *testing.T) {
	t.Parallel()

	design, err := os.ReadFile("../../../DESIGN.md")
	if err != nil {
		t.Fatal(err)
	}

	_, rest, found := strings.Cut(string(design), "<!-- states: generated by millrace orders diagram -->\n")
	block, _, closed := strings.Cut(rest, "<!-- end of states -->")

	if want := "```mermaid\n" + fulfilment.Diagram() + "```\n"; !found || !closed || block != want {
		t.Errorf("DESIGN.md shows other states: run make generate\ngot  %s\nwant %s", block, want)
	}
}
