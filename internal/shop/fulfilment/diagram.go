package fulfilment

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/millracehq/millrace/internal/shop/inventory"
	"github.com/millracehq/millrace/internal/shop/money"
	"github.com/millracehq/millrace/internal/shop/order"
	"github.com/millracehq/millrace/internal/shop/payment"
)

// Transition is a step between two states of an order that some command causes. From is
// empty for a new order.
type Transition struct {
	From, To order.Status
	// Events are the types of the events that take the step.
	Events []string
}

// Transitions returns all transitions. It derives them from Decide by trying every command
// in every state that it reaches.
var Transitions = sync.OnceValue(func() (list []Transition) {
	edges := explore()

	for _, from := range states {
		for _, to := range states {
			if events := slices.Sorted(maps.Keys(edges[edge{from, to}])); len(events) > 0 {
				list = append(list, Transition{From: from, To: to, Events: events})
			}
		}
	}

	return list
})

// Diagram draws the transitions as a Mermaid state diagram.
func Diagram() string {
	var text strings.Builder

	text.WriteString("stateDiagram-v2\n")

	for _, t := range Transitions() {
		fmt.Fprintf(&text, "    %s --> %s: %s\n", cmp.Or(string(t.From), "[*]"), t.To, strings.Join(t.Events, ", "))
	}

	for _, status := range states {
		if status.Terminal() {
			fmt.Fprintf(&text, "    %s --> [*]\n", status)
		}
	}

	return text.String()
}

// states lists the states in drawing order.
var states = []order.Status{
	"", order.StatusCreated, order.StatusInventoryReserved, order.StatusPaid, order.StatusCompleted,
	order.StatusInventoryUnavailable, order.StatusPaymentFailed, order.StatusExpired, order.StatusCancelled,
}

type edge struct{ from, to order.Status }

// explore returns the events of each transition that a command can cause.
func explore() map[edge]map[string]bool {
	edges := map[edge]map[string]bool{}
	seen, queue := map[string]bool{}, []order.Order{{ID: "o"}}

	for len(queue) > 0 {
		start := queue[0]
		queue = queue[1:]

		for _, c := range commands(start) {
			d, err := Decide(start, c)
			if err != nil {
				continue
			}

			for o, rest := start, d.Events; len(rest) > 0; rest = rest[1:] {
				next, _ := o.Apply(rest[0]) // Decide has applied it
				e := edge{o.Status, next.Status}

				if edges[e] == nil {
					edges[e] = map[string]bool{}
				}

				edges[e][rest[0].EventType()] = true
				o = next
			}

			d.Order.Version = 0 // a state is the same however it is reached

			if key := fmt.Sprint(d.Order.Status, d.Order.Captures); !seen[key] {
				seen[key] = true
				queue = append(queue, d.Order)
			}
		}
	}

	return edges
}

// commands returns every command, some with each of two charges.
func commands(o order.Order) []Command {
	asked := order.Order{ID: o.ID, Total: money.MustParse("1"), Currency: money.DefaultCurrency, Lines: []order.Line{{ProductID: "p", Quantity: 1}}}
	list := []Command{
		Place{Asked: asked}, Place{Asked: asked, Short: &inventory.Shortage{ProductID: "p", Requested: 1}},
		Settle{}, Settle{Outcome: payment.Outcome{Declined: "declined"}},
		Complete{}, Cancel{}, Expire{},
	}

	for _, transaction := range []string{"txn_1", "txn_2"} {
		captured := payment.Outcome{TransactionID: transaction}
		list = append(list, Settle{Outcome: captured}, Cancel{Found: captured}, Expire{Found: captured},
			Refunded{TransactionID: transaction, RefundID: "ref_" + transaction},
			FailRefund{TransactionID: transaction, RefundID: "ref_" + transaction, Reason: "failed"})
	}

	return list
}
