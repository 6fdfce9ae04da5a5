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

// Diagram draws the states of an order as a Mermaid state diagram. It derives
// them from Decide by trying every command in every state that it reaches.
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

// states lists the states in drawing order.
var states = []order.Status{
	"", order.StatusCreated, order.StatusInventoryReserved, order.StatusPaid, order.StatusCompleted,
	order.StatusInventoryUnavailable, order.StatusPaymentFailed, order.StatusExpired, order.StatusCancelled,
}

// edge is a transition with the events that cause it.
type edge struct {
	from, to order.Status
	events   []string
}

// explore returns the edges that commands can follow, in order of states.
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

			edges = addEdges(edges, o, d)

			d.Order.Version = 0 // a state is the same however it is reached

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

// addEdges adds the edges that the events of a decision follow.
func addEdges(edges []edge, o order.Order, d Decision) []edge {
	for _, data := range d.Events {
		next, err := o.Apply(data)
		if err != nil {
			break // cannot happen: Decide has applied it
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
			Refunded{TransactionID: transaction, RefundID: "ref_" + transaction})
	}

	return list
}
