package crash

import (
	"fmt"
	"slices"
	"strings"

	"github.com/google/uuid"
)

// Topics of the load.
const (
	ordersCreated   = "orders.created"
	cancelRequested = "orders.cancel.requested"
	userCreated     = "user.created"
	userUpdated     = "user.updated"
)

// outgoing is a message of the load.
type outgoing struct {
	topic, key string
	id         uuid.UUID
	payload    string
}

// class is a kind of order: what becomes of it, whatever dies.
type class struct {
	name string
	n    int
	// product is what it orders, and amount what it costs.
	product, amount string
	// histories are the events that it may have in the end.
	histories []string
	// how the payment provider answers: a rule of the simulated gateway without its order.
	rule string
}

const completed = "OrderCreated InventoryReserved OrderPaid OrderCompleted"

// classes are the orders of the load. An order is cancelled while its charge is pending, but
// may be paid or even completed before the cancellation arrives.
var classes = []class{
	{"plain", 14, "apple", "9.99", []string{completed}, ``},
	{"short", 2, "pear", "9.99", []string{"OrderCreated InventoryUnavailable"}, ``},
	{"declined", 2, "apple", "0", []string{"OrderCreated InventoryReserved PaymentFailed"}, ``},
	{"pending", 2, "apple", "9.99", []string{completed}, `"action": "pending", "times": 2`},
	{"unanswered", 2, "apple", "9.99", []string{completed}, `"action": "charge_then_error", "times": 1`},
	{"cancelled", 3, "apple", "9.99", []string{
		"OrderCreated InventoryReserved OrderCancelled PaymentCapturedLate PaymentRefunded",
		"OrderCreated InventoryReserved OrderPaid OrderCancelled PaymentRefunded",
		completed,
	}, `"action": "pending", "times": 20`},
	// Its payment stops, because the provider has its key with another amount, until an
	// operator requeues it.
	{"requeued", 2, "apple", "9.99", []string{completed}, ``},
}

// expiring are the only orders of a load for the points of expiry. Their payments stop
// like those that are requeued, but are discarded.
var expiring = []class{{"expired", 3, "apple", "9.99", []string{"OrderCreated InventoryReserved OrderExpired"}, ``}}

const (
	users   = 4
	updates = 5
	// restocks is the number of deliveries of plums, of restocked each. Nothing but the
	// inbox notices that one is applied twice.
	restocks  = 5
	restocked = 3
)

// load is a set of messages and what must become of them.
type load struct {
	classes  []class
	messages []outgoing
	// cancellations are sent once the charges of their orders are pending.
	cancellations []outgoing
	// histories has the ids of each user's messages, in order.
	histories map[string][]uuid.UUID
	// stopped has the payloads of the messages that stay stopped.
	stopped []string
}

// newLoad returns a load, in the order in which it is sent. Each order, each creation of a
// user and each delivery is sent twice.
func newLoad(of []class, people int) *load {
	l := &load{classes: of, histories: map[string][]uuid.UUID{}}

	for n := range updates + 2 {
		for u := range people {
			l.addUser(u, n)
		}

		if n == 1 && people > 0 {
			l.addRefused(fmt.Sprintf("user-%d", people-1))
		}

		for _, c := range of {
			for i := range c.n {
				if i%(updates+2) == n {
					l.addOrder(c, i)
				}
			}
		}
	}

	if people > 0 {
		l.addDeliveries()
		l.addWrong()
	}

	return l
}

func (l *load) addOrder(c class, i int) {
	id := fmt.Sprintf("%s-%d", c.name, i)
	o := outgoing{ordersCreated, id, newID(), fmt.Sprintf(
		`{"order":{"id":%q,"product_id":%q,"quantity":1,"total_amount":%s}}`, id, c.product, c.amount)}
	l.messages = append(l.messages, o, o)

	if c.name == "cancelled" {
		// An id identifies a message to one consumer, so another topic may have it too.
		l.cancellations = append(l.cancellations, outgoing{cancelRequested, id, o.id, fmt.Sprintf(`{"order_id":%q,"reason":"changed my mind"}`, id)})
	}
}

// addUser adds step n of a user: the creation, or an update. The first update of the
// first user precedes the creation.
func (l *load) addUser(u, n int) {
	id := fmt.Sprintf("user-%d", u)

	switch {
	case n == 0 && u > 0, n == 2 && u == 0:
		o := outgoing{userCreated, id, newID(), fmt.Sprintf(`{"user":{"id":%q,"name":"Ann","email":"%s@example.com","step":0}}`, id, id)}
		l.messages = append(l.messages, o, o)
		l.histories[id] = append([]uuid.UUID{o.id}, l.histories[id]...)
	default:
		step := len(l.histories[id])
		if u == 0 && n < 2 {
			step++ // the creation follows
		}

		if step > updates {
			return
		}

		o := outgoing{userUpdated, id, newID(), fmt.Sprintf(`{"user_id":%q,"updates":{"step":%d}}`, id, step)}
		l.messages = append(l.messages, o)
		l.histories[id] = append(l.histories[id], o.id)
	}
}

func (l *load) addDeliveries() {
	for range restocks {
		o := outgoing{"inventory.restocked", "plum", newID(), fmt.Sprintf(`{"product_id":"plum","quantity":%d}`, restocked)}
		l.messages = append(l.messages, o, o)
	}
}

// refused is the content of an e-mail that the mail server always postpones.
const refused = "refused"

// addRefused adds a notification that stops after a few attempts, before which it blocks
// the later ones of its user.
func (l *load) addRefused(user string) {
	payload := fmt.Sprintf(`{"user_id":%q,"content":%q}`, user, refused)
	l.messages = append(l.messages, outgoing{"notifications", user, newID(), payload})
	l.stopped = append(l.stopped, payload)
}

// addWrong adds an invalid message, and another body under the id of an order.
func (l *load) addWrong() {
	for _, o := range []outgoing{
		{ordersCreated, "wrong", newID(), `{"order":{"id":"wrong","quantity":"two"}}`},
		{ordersCreated, "plain-0", l.idOf("plain-0"), `{"order":{"id":"plain-0","product_id":"apple","quantity":7,"total_amount":9.99}}`},
	} {
		l.messages = append(l.messages, o)
		l.stopped = append(l.stopped, o.payload)
	}
}

func (l *load) idOf(order string) uuid.UUID {
	for _, o := range l.messages {
		if o.topic == ordersCreated && o.key == order {
			return o.id
		}
	}

	return uuid.Nil
}

// all returns all messages.
func (l *load) all() []outgoing { return slices.Concat(l.messages, l.cancellations) }

// rules are the rules of the simulated gateway, as JSON.
func (l *load) rules() string {
	var rules []string

	for _, c := range l.classes {
		if c.rule != "" {
			rules = append(rules, fmt.Sprintf(`{"order": "%s-*", %s}`, c.name, c.rule))
		}
	}

	return "[" + strings.Join(rules, ", ") + "]"
}

// orders maps each order to the histories that it may have.
func (l *load) orders() map[string][]string {
	all := map[string][]string{}

	for _, c := range l.classes {
		for i := range c.n {
			all[fmt.Sprintf("%s-%d", c.name, i)] = c.histories
		}
	}

	return all
}

func newID() uuid.UUID { return uuid.Must(uuid.NewV7()) }
