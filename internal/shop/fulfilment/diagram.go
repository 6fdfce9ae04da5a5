package fulfilment

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/millracehq/millrace/internal/shop/inventory"
	"github.com/millracehq/millrace/internal/shop/money"
	"github.com/millracehq/millrace/internal/shop/order"
	"github.com/millracehq/millrace/internal/shop/payment"
)

// Diagram draws the states of an order as a Mermaid state diagram. It derives
// them from Decide by trying every command in every state that it reaches.
func Diagram() string {
	var text strings.Builder

	text.WriteString("stateDiagram-v2\n")

	edges := explore()

	for _, from := range states {
		for _, to := range states {
			if events := slices.Sorted(maps.Keys(edges[edge{from, to}])); len(events) > 0 {
				fmt.Fprintf(&text, "    %s --> %s: %s\n", cmp.Or(string(from), "[*]"), to, strings.Join(events, ", "))
			}
		}
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
