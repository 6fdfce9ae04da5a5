package fulfilment

import (
	"fmt"
	"slices"
	"strings"

	"github.com/millracehq/millrace/internal/shop/inventory"
	"github.com/millracehq/millrace/internal/shop/money"
	"github.com/millracehq/millrace/internal/shop/order"
	"github.com/millracehq/millrace/internal/shop/payment"
)

// Diagram draws the states of an order as a Mermaid state diagram. It knows
// nothing by itself: it tries every command in every state that Decide leads to.
func Diagram() string {
	var lines []string

	ends := map[order.Status]bool{}

	for _, e := range explore() {
		from := string(e.from)
		if from == "" {
			from = "[*]"
		}

		slices.Sort(e.events)

		lines = append(lines, fmt.Sprintf("    %s --> %s: %s", from, e.to, strings.Join(e.events, ", ")))
		ends[e.to] = e.to.Terminal()
	}

	for _, status := range states {
		if ends[status] {
			lines = append(lines, fmt.Sprintf("    %s --> [*]", status))
		}
	}

	return "stateDiagram-v2\n" + strings.Join(lines, "\n") + "\n"
}

// states is the order in which states are drawn.
var states = []order.Status{
	"", order.StatusCreated, order.StatusInventoryReserved, order.StatusPaid, order.StatusCompleted,
	order.StatusInventoryUnavailable, order.StatusPaymentFailed, order.StatusExpired, order.StatusCancelled,
}

// edge is what leads from one state to another.
type edge struct {
	from, to order.Status
	events   []string
}

// explore returns all edges that commands can lead along, in order of states.
func explore() []edge {
	var edges []edge

	start := order.Order{ID: "o"}
	seen, queue := map[string]bool{}, []order.Order{start}

	for len(queue) > 0 {
		o := queue[0]
		queue = queue[1:]

		for _, c := range commands(o) {
			d, err := Decide(o, c)
			if err != nil {
				continue
			}

			edges = walk(edges, o, d)

			d.Order.Version = 0 // a state is the same however it was reached

			if key := fmt.Sprint(d.Order.Status, d.Order.Captures); !seen[key] {
				seen[key] = true
				queue = append(queue, d.Order)
			}
		}
	}

	slices.SortStableFunc(edges, func(a, b edge) int {
		if a.from != b.from {
			return slices.Index(states, a.from) - slices.Index(states, b.from)
		}

		return slices.Index(states, a.to) - slices.Index(states, b.to)
	})

	return edges
}

// walk adds the edges along which the events of a decision go.
func walk(edges []edge, o order.Order, d Decision) []edge {
	for _, data := range d.Events {
		next, err := o.Apply(data)
		if err != nil {
			break // Decide has applied it: it cannot be
		}

		name := data.EventType()
		at := slices.IndexFunc(edges, func(e edge) bool { return e.from == o.Status && e.to == next.Status })

		switch {
		case at < 0:
			edges = append(edges, edge{from: o.Status, to: next.Status, events: []string{name}})
		case !slices.Contains(edges[at].events, name):
			edges[at].events = append(edges[at].events, name)
		}

		o = next
	}

	return edges
}

// commands are all that can be said to an order, with two different charges.
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
			Refunded{TransactionID: transaction, RefundID: "ref_" + transaction})
	}

	return list
}
