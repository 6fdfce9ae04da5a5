package checker

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/millracehq/millrace/cmd/proof/record"
)

// final are the statuses in which orders end.
var final = []string{"completed", "inventory_unavailable", "payment_failed", "cancelled", "expired"}

// open reports whether there is an open failed message with a key.
func (c *check) open(key string) bool {
	return slices.ContainsFunc(c.state.failed, func(f failure) bool { return f.Key == key && f.State != "resolved" })
}

// editedKeys are the keys of the orders that operators made of failed messages.
func (c *check) editedKeys() map[string]bool {
	keys := map[string]bool{}

	for _, m := range c.rec.Messages {
		if c.rec.Edited[m.ID] != nil {
			keys[m.Key] = true
		}
	}

	return keys
}

// ended checks that what was ordered has ended as it may.
func (c *check) ended() {
	edited := c.editedKeys()

	for id := range c.state.orders {
		if c.orders[id] == nil && !edited[id] {
			c.add(Ended, "order "+id, "no order that nobody sent", "one that is %s", c.state.orders[id].Status)
		}
	}

	for _, id := range slices.Sorted(maps.Keys(edited)) {
		if o, exists := c.state.orders[id]; !exists || !slices.Contains(final, o.Status) {
			c.add(Ended, "order "+id, "a status in which orders end, after its message was edited and requeued", "%q", o.Status)
		}
	}

	for _, id := range slices.Sorted(maps.Keys(c.orders)) {
		c.end(id)
	}
}

// end checks one order that was sent.
func (c *check) end(id string) {
	o, exists := c.state.orders[id]

	switch bodies := c.orders[id]; {
	case !exists && c.open(id):
	case !exists:
		c.add(Ended, "order "+id, "an order, or an open failed message", "neither")
	case !slices.Contains(final, o.Status) && !c.open(id):
		c.add(Ended, "order "+id, "a status in which orders end, or an open failed message", "%s", o.Status)
	case !slices.ContainsFunc(bodies, func(b *record.Order) bool { return same(b, o) }):
		c.add(Ended, "order "+id, "a body that was sent", "%d cents, %v", o.Total, o.Lines)
	case bodies[0].Declined && o.Status == "completed":
		c.add(Ended, "order "+id, "a status without a sale, because the provider declines it", "%s", o.Status)
	case !bodies[0].Cancelled && o.Status == "cancelled":
		c.add(Ended, "order "+id, "no cancellation, because none was sent", "%s", o.Status)
	}
}

func same(b *record.Order, o order) bool {
	return b.Total == o.Total && slices.EqualFunc(b.Lines, o.Lines, func(a record.Line, b line) bool { return a.Product == b.Product && a.Quantity == b.Quantity })
}

// stock checks the goods of each product.
func (c *check) stock() {
	supplied := maps.Clone(c.rec.Stock)
	sold, reserved := map[string]int64{}, map[string]int64{}

	for _, m := range c.sent["inventory.restocked"] {
		if m.Fate == record.Applied {
			supplied[m.Restock.Product] += m.Restock.Quantity
		}
	}

	for _, o := range c.state.orders {
		for _, l := range o.Lines {
			switch o.Status {
			case "completed":
				sold[l.Product] += l.Quantity
			case "inventory_reserved", "paid":
				reserved[l.Product] += l.Quantity
			}
		}
	}

	for _, p := range slices.Sorted(maps.Keys(c.state.stock)) {
		found := c.state.stock[p]
		expected := stock{Product: p, Supplied: supplied[p], Reserved: reserved[p], Sold: sold[p], Available: supplied[p] - reserved[p] - sold[p]}

		if found != expected || found.Available < 0 {
			c.add(Stock, "product "+p, fmt.Sprintf("%+v", expected), "%+v", found)
		}

		delete(supplied, p)
	}

	for p := range supplied {
		c.add(Stock, "product "+p, "a row of stock", "none")
	}
}

// money compares orders with what the provider itself recorded, both ways.
func (c *check) money() {
	net, captures := map[string]int64{}, map[string]int{}
	charges := map[string]record.Charge{}
	known := c.editedKeys()

	for _, ch := range c.rec.Charges {
		charges[ch.Transaction] = ch
		back := refunded(ch)

		if c.orders[ch.Order] == nil && !known[ch.Order] {
			c.add(Money, "charge "+ch.Transaction, "an order that was sent", "order %q", ch.Order)
		}

		if ch.Captures > 1 {
			c.add(Money, "charge "+ch.Transaction+" of order "+ch.Order, "one capture", "%d", ch.Captures)
		}

		if ch.Captures > 0 {
			net[ch.Order] += ch.Amount*int64(ch.Captures) - back
		}

		if ch.Captures > 0 && back == 0 {
			captures[ch.Order]++
		}
	}

	for id := range net {
		if _, exists := c.state.orders[id]; !exists && net[id] != 0 {
			c.add(Money, "order "+id, "no capture: the order does not exist", "%d cents", net[id])
		}
	}

	for _, id := range slices.Sorted(maps.Keys(c.state.orders)) {
		if captures[id] > 1 {
			c.add(Money, "order "+id, "at most one capture that is kept", "%d", captures[id])
		}

		c.kept(c.state.orders[id], net[id])
		c.payment(c.state.orders[id], charges)
	}
}

// kept checks the money that was kept for an order.
func (c *check) kept(o order, net int64) {
	switch {
	case o.Status == "completed" && net != o.Total:
		c.add(Money, "order "+o.ID+", which is completed", fmt.Sprintf("%d cents at the provider", o.Total), "%d", net)
	case slices.Contains(final, o.Status) && o.Status != "completed" && net != 0 && !c.open(o.ID):
		c.add(Money, "order "+o.ID+", which is "+o.Status, "nothing kept at the provider", "%d cents", net)
	}
}

func refunded(ch record.Charge) (sum int64) {
	for _, r := range ch.Refunds {
		sum += r.Amount
	}

	return sum
}

// payment compares the payment of an order with the charge at the provider.
func (c *check) payment(o order, charges map[string]record.Charge) {
	p, exists := c.state.payments[o.ID]

	switch {
	case !exists && o.Status == "completed":
		c.add(Money, "order "+o.ID+", which is completed", "a payment", "none")
	case !exists || p.Transaction == nil:
	case charges[*p.Transaction].Captures == 0 || charges[*p.Transaction].Order != o.ID:
		c.add(Money, "payment of order "+o.ID, "a capture at the provider", "%s, which the provider knows as %+v", *p.Transaction, charges[*p.Transaction])
	case (p.Status == "refunded") != (refunded(charges[*p.Transaction]) > 0) && !c.open(o.ID):
		c.add(Money, "payment of order "+o.ID, "the refunds of the provider", "%s, and %d cents refunded at the provider", p.Status, refunded(charges[*p.Transaction]))
	}
}

// once are the steps of an order that happen at most once.
var once = []string{
	"OrderCreated", "InventoryReserved", "InventoryUnavailable", "OrderPaid", "PaymentFailed", "OrderCompleted", "OrderExpired", "OrderCancelled",
}

// transaction is in the data of events about money.
type transaction struct {
	ID     string `json:"transaction_id"`
	Refund string `json:"refund_id"`
}

// compensation checks that steps of an order are undone once, if they were done.
func (c *check) compensation() {
	refunds := map[string]int{} // by transaction, as recorded

	for stream, events := range c.state.streams {
		if strings.HasPrefix(stream, "order-") {
			c.steps(stream, events, refunds)
		}
	}

	for _, ch := range c.rec.Charges {
		if len(ch.Refunds) > 1 || refunded(ch) > ch.Amount*int64(ch.Captures) {
			c.add(Compensation, "charge "+ch.Transaction+" of order "+ch.Order, "at most one refund, of what was captured", "%v of %d cents", ch.Refunds, ch.Amount)
		}

		if refunds[ch.Transaction] != len(ch.Refunds) && !c.open(ch.Order) {
			c.add(Compensation, "charge "+ch.Transaction+" of order "+ch.Order, fmt.Sprintf("%d recorded refunds, as at the provider", len(ch.Refunds)), "%d", refunds[ch.Transaction])
		}
	}
}

// steps checks the steps of one order, and counts its refunds.
func (c *check) steps(stream string, events []event, refunds map[string]int) {
	steps, captured := map[string]int{}, map[string]bool{}

	for _, e := range events {
		steps[e.Type]++

		var t transaction

		_ = json.Unmarshal(e.Data, &t) // events about goods have none

		switch e.Type {
		case "OrderPaid", "PaymentCapturedLate":
			captured[t.ID] = true
		case "PaymentRefunded":
			refunds[t.ID]++

			if !captured[t.ID] {
				c.add(Compensation, stream, "a refund of a capture of the order", "one of %s", t.ID)
			}
		}
	}

	for _, step := range once {
		if steps[step] > 1 {
			c.add(Compensation, stream, "at most one "+step, "%d", steps[step])
		}
	}

	if steps["InventoryReserved"] == 0 && steps["OrderCancelled"]+steps["OrderExpired"]+steps["PaymentFailed"] > 0 {
		c.add(Compensation, stream, "goods released only after they were reserved", "%s", typesOf(events))
	}
}

func typesOf(events []event) string {
	var types []string
	for _, e := range events {
		types = append(types, e.Type)
	}

	return strings.Join(types, " ")
}

// after holds which status follows from which event in which status.
var after = map[string]map[string]string{
	"OrderCreated":         {"": "created"},
	"InventoryReserved":    {"created": "inventory_reserved"},
	"InventoryUnavailable": {"created": "inventory_unavailable"},
	"OrderPaid":            {"inventory_reserved": "paid"},
	"PaymentFailed":        {"inventory_reserved": "payment_failed"},
	"OrderCompleted":       {"paid": "completed"},
	"OrderExpired":         {"inventory_reserved": "expired"},
	"OrderCancelled":       {"inventory_reserved": "cancelled", "paid": "cancelled"},
}

// streams checks versions, and that the events of an order lead to its state.
func (c *check) streams() {
	for stream, events := range c.state.streams {
		for i, e := range events {
			if e.Version != i+1 {
				c.add(Streams, stream, fmt.Sprintf("version %d", i+1), "%d", e.Version)

				break
			}
		}

		if id, isOrder := strings.CutPrefix(stream, "order-"); isOrder {
			if _, exists := c.state.orders[id]; !exists {
				c.add(Streams, stream, "a row of orders", "none")
			}
		}
	}

	for id, o := range c.state.orders {
		events := c.state.streams["order-"+id]
		status := ""

		for _, e := range events {
			if next, changes := after[e.Type]; changes {
				status = next[status]
			}
		}

		if status != o.Status || len(events) != o.Version {
			c.add(Streams, "order "+id, fmt.Sprintf("%q in version %d, after %s", status, len(events), typesOf(events)), "%q in version %d", o.Status, o.Version)
		}
	}
}

// users checks the histories and the states of users.
func (c *check) users() {
	history := map[string][]uuid.UUID{} // by user, in the order of sending
	fields := map[string]map[string]any{}

	for _, topic := range []string{"user.created", "user.updated", "user.events"} {
		for _, m := range c.sent[topic] {
			if m.User == nil || m.Fate != record.Applied {
				continue
			}

			if m.User.Create { // whenever it arrives
				history[m.Key] = append([]uuid.UUID{m.ID}, history[m.Key]...)
			} else {
				history[m.Key] = append(history[m.Key], m.ID)
			}

			if fields[m.Key] == nil {
				fields[m.Key] = map[string]any{}
			}

			maps.Copy(fields[m.Key], m.User.Fields)
		}
	}

	for _, id := range slices.Sorted(maps.Keys(history)) {
		c.history(id, history[id])
		c.user(id, fields[id])
	}

	for stream := range c.state.streams {
		if id, isUser := strings.CutPrefix(stream, "user-"); isUser && history[id] == nil {
			c.add(Streams, stream, "a user that was sent", "one that nobody sent")
		}
	}
}

// history checks that the messages of a user were applied once and in order.
func (c *check) history(id string, want []uuid.UUID) {
	var got []uuid.UUID

	for _, e := range c.state.streams["user-"+id] {
		if len(got) == 0 || got[len(got)-1] != e.Message { // one message may record several events
			got = append(got, e.Message)
		}
	}

	if !slices.Equal(want, got) {
		c.add(Order, "user "+id, fmt.Sprintf("%d messages, each once and in order: %v", len(want), want), "%v", got)
	}
}

// user compares the state of a user with what was sent.
func (c *check) user(id string, want map[string]any) {
	u, exists := c.state.users[id]
	if !exists {
		c.add(Streams, "user "+id, "a row of users", "none")

		return
	}

	if n := len(c.state.streams["user-"+id]); u.Version != n {
		c.add(Streams, "user "+id, fmt.Sprintf("version %d, after as many events", n), "%d", u.Version)
	}

	got := map[string]any{}
	if err := json.Unmarshal(u.Properties, &got); err != nil {
		c.add(Streams, "user "+id, "properties", "%v", err)
	}

	if u.Name != nil {
		got["name"] = *u.Name
	}

	if u.Email != nil {
		got["email"] = *u.Email
	}

	a, _ := json.Marshal(want)
	b, _ := json.Marshal(got) // maps of plain values

	if string(a) != string(b) {
		c.add(Streams, "user "+id, string(a), "%s", b)
	}
}
