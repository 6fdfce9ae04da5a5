package soak

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"

	"github.com/google/uuid"

	"github.com/millracehq/millrace/cmd/proof/wire"
)

// Topics of the load.
const (
	ordersCreated = "orders.created"
	userCreated   = "user.created"
	userUpdated   = "user.updated"
)

// secret is in the personal data of all users. It must not appear in the log.
const secret = "soakxsecretx"

// outgoing is a message of the load.
type outgoing struct {
	topic string
	// key is empty if the producer leaves it to the payload.
	key string
	// id is uuid.Nil if the producer sends none.
	id      uuid.UUID
	payload string

	order, user string // what it is about
	// repeated means that the same order or creation has been sent before.
	repeated bool
}

// name identifies an order, or a message about a user.
func (o outgoing) name() string {
	if o.topic == ordersCreated {
		return o.order
	}

	return o.id.String()
}

// messages returns what is published.
func messages(list []outgoing) []wire.Message {
	all := make([]wire.Message, len(list))
	for i, o := range list {
		all[i] = wire.Message{Topic: o.topic, Key: o.order + o.user, Keyless: o.key == "", ID: o.id, Payload: []byte(o.payload)}
	}

	return all
}

// sizes describes a load.
type sizes struct {
	orders, users, updates int
	// products is the number of products that the orders are for.
	products int
	// early sends the creation of every fifth user after its first updates. All updates
	// of these users are in the first half of the load, because a key that waits when
	// its replica is killed waits for more than a minute before another replica tries
	// it.
	early bool
}

// newLoad returns messages in the order in which they are sent. Each order is sent
// twice, the second time without an id. If the first message has an id, this id
// identifies it. Each user has a creation, which is sent twice under one id, and
// numbered updates.
func newLoad(name string, s sizes, random *rand.Rand) []outgoing {
	type placed struct {
		outgoing

		at float64
	}

	var all []placed

	for i := range s.orders {
		at := float64(i) / float64(s.orders)
		o := newOrder(fmt.Sprintf("%s-%d", name, i), i, s.products)
		all = append(all, placed{o, at})

		o.id, o.repeated = uuid.Nil, true
		all = append(all, placed{o, at + 0.02*random.Float64()})
	}

	for i := range s.users {
		id, begin, end := fmt.Sprintf("%s-%d", name, i), 0.3*random.Float64(), 1.0
		early := s.early && i%5 == 0

		if early {
			end = 0.5
		}

		step := (end - begin) / float64(s.updates+1)

		created := newUser(id)
		createdAt := begin - step

		if early {
			createdAt = begin + 2.5*step
		}

		all = append(all, placed{created, createdAt})

		created.repeated = true
		all = append(all, placed{created, createdAt + 0.02*random.Float64()})

		for n := 1; n <= s.updates; n++ {
			all = append(all, placed{newUpdate(id, n), begin + step*float64(n)})
		}
	}

	slices.SortStableFunc(all, func(a, b placed) int { return cmp.Compare(a.at, b.at) })

	list := make([]outgoing, len(all))
	for i, p := range all {
		list[i] = p.outgoing
	}

	return list
}

// newOrder returns an order for one product. The payment of every seventh order fails.
func newOrder(id string, n, products int) outgoing {
	amount := "9.99"
	if n%7 == 0 {
		amount = "0"
	}

	return outgoing{topic: ordersCreated, order: id, id: newID(), payload: fmt.Sprintf(
		`{"order":{"id":%q,"product_id":"soak_%d","quantity":1,"total_amount":%s}}`, id, n%products, amount)}
}

func newUser(id string) outgoing {
	return outgoing{topic: userCreated, user: id, key: id, id: newID(), payload: fmt.Sprintf(
		`{"user":{"id":%q,"name":"Soak","email":"%s@example.com","step":0}}`, id, secret)}
}

func newUpdate(user string, n int) outgoing {
	return outgoing{topic: userUpdated, user: user, key: user, id: newID(), payload: fmt.Sprintf(
		`{"user_id":%q,"updates":{"step":%d,"note":"%s%d"}}`, user, n, secret, n)}
}

func newID() uuid.UUID { return uuid.Must(uuid.NewV7()) }

// expected is what must have happened once a load is applied.
type expected struct {
	orders []string
	// histories holds the ids of each user's messages: the creation, and then its updates
	// in order.
	histories map[string][]uuid.UUID
	// ids holds the ids sent on each topic, without duplicates.
	ids map[string][]uuid.UUID
}

func expect(sent []outgoing) expected {
	e := expected{histories: map[string][]uuid.UUID{}, ids: map[string][]uuid.UUID{}}

	for _, o := range sent {
		if o.repeated {
			continue
		}

		e.ids[o.topic] = append(e.ids[o.topic], o.id)

		switch o.topic {
		case ordersCreated:
			e.orders = append(e.orders, o.order)
		case userCreated:
			e.histories[o.user] = append([]uuid.UUID{o.id}, e.histories[o.user]...)
		case userUpdated:
			e.histories[o.user] = append(e.histories[o.user], o.id)
		}
	}

	return e
}

// units returns the number of orders and user messages to be applied.
func (e expected) units() int {
	units := len(e.orders)
	for _, history := range e.histories {
		units += len(history)
	}

	return units
}

// anonymous removes the ids of orders, as if their producer sent none.
func anonymous(list []outgoing) []outgoing {
	list = slices.Clone(list)

	for i := range list {
		if list[i].topic == ordersCreated {
			list[i].id = uuid.Nil
		}
	}

	return list
}

// grouped formats a number with commas.
func grouped(n int) string {
	digits := strconv.Itoa(n)

	var b strings.Builder

	for i, digit := range digits {
		if i > 0 && (len(digits)-i)%3 == 0 {
			b.WriteByte(',')
		}

		b.WriteRune(digit)
	}

	return b.String()
}
