package checker

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/millracehq/millrace/cmd/proof/record"
	"github.com/millracehq/millrace/cmd/proof/wire"
)

// cause identifies a published message by its topic and the message whose handling
// published it.
type cause struct {
	topic   string
	message uuid.UUID
}

func (c cause) String() string { return fmt.Sprintf("%s because of message %s", c.topic, c.message) }

// due returns what must have been published because of committed events, and how often
// per cause.
func (c *check) due() map[cause]int {
	due := map[cause]int{}

	for stream, events := range c.state.streams {
		if strings.HasPrefix(stream, "order-") {
			dueOfOrder(due, events)
		} else {
			dueOfUser(due, events)
		}
	}

	channels := map[uuid.UUID]string{}
	for _, m := range c.sent["notifications"] {
		channels[m.ID] = m.Channel
	}

	for row := range c.state.inbox {
		if row.consumer == "notification.route" {
			due[cause{"notifications." + cmp.Or(channels[row.message], "email"), row.message}]++
		}
	}

	return due
}

// follows maps events of an order to the topic on which they are published.
var follows = map[string]string{
	"InventoryReserved":    "payments.requested",
	"InventoryUnavailable": "orders.rejected",
	"PaymentFailed":        "orders.rejected",
	"OrderCancelled":       "orders.cancelled",
	"OrderExpired":         "orders.expired",
	"PaymentCapturedLate":  "payments.refund.requested",
	"PaymentRefunded":      "payments.refunded",
}

func dueOfOrder(due map[cause]int, events []event) {
	cancelledBy, paid := uuid.Nil, false

	for _, e := range events {
		if e.Type == "OrderCancelled" {
			cancelledBy = e.Message
		}
	}

	for _, e := range events {
		if topic := follows[e.Type]; topic != "" {
			due[cause{topic, e.Message}]++
		}

		switch {
		case e.Type == "OrderPaid" && e.Message != cancelledBy:
			due[cause{"orders.completed", e.Message}]++

			paid = true
		case e.Type == "OrderPaid":
			paid = true
		case e.Type == "OrderCancelled" && paid:
			due[cause{"payments.refund.requested", e.Message}]++
		}
	}
}

func dueOfUser(due map[cause]int, events []event) {
	for i, e := range events {
		if i > 0 && events[i-1].Message == e.Message {
			continue // one message may record several events
		}

		due[cause{"notifications", e.Message}]++

		if e.Type != "UserCreated" {
			due[cause{"user.profile.updated", e.Message}]++
		}
	}
}

// unexplained are topics whose messages also have other causes than events: a timer, or
// an order that had already ended.
var unexplained = []string{"orders.expiry.due", "orders.cancel.refused"}

// topics checks that what was committed is on its topic, and that nothing else is.
func (c *check) topics() {
	for _, p := range c.state.outbox {
		c.add(Topics, fmt.Sprintf("row %d of the outbox, topic %s, key %s", p.Seq, p.Topic, p.Key), "an empty outbox", "refused: %s, available: %s", text(p.Refused), text(p.Available))
	}

	due, there := c.due(), c.arrived()

	for k, n := range due {
		if len(there[k]) < n {
			c.add(Topics, k.String(), fmt.Sprintf("%d messages", n), "%d", len(there[k]))
		}
	}

	for k, ids := range there {
		if len(ids) > due[k] && !slices.Contains(unexplained, k.topic) {
			c.add(Topics, k.String(), fmt.Sprintf("%d messages, as committed", due[k]), "%d: %v", len(ids), slices.Collect(maps.Keys(ids)))
		}
	}

	sent := map[uuid.UUID]bool{}
	for _, m := range c.rec.Messages {
		sent[m.ID] = true
	}

	for topic, list := range c.rec.Topics {
		for _, p := range list {
			if p.Causation == uuid.Nil && !sent[p.ID] && !slices.Contains(unexplained, topic) && !c.withoutID(topic) {
				c.add(Topics, fmt.Sprintf("%s@%d on %s, message %s", p.Place, p.Offset, topic, p.ID), "a message that was sent", "one that nobody sent")
			}
		}
	}
}

// withoutID reports whether messages without an id were sent to a topic.
func (c *check) withoutID(topic string) bool {
	return slices.ContainsFunc(c.rec.Messages, func(m *record.Message) bool { return m.Topic == topic && m.ID == uuid.Nil })
}

func text(s *string) string {
	if s == nil {
		return "-"
	}

	return *s
}

// arrived returns the ids of what the service published, by cause. On the embedded broker,
// a message has arrived once its consumer has recorded it.
func (c *check) arrived() map[cause]map[uuid.UUID]bool {
	there := map[cause]map[uuid.UUID]bool{}
	add := func(topic string, by, id uuid.UUID) {
		k := cause{topic, by}
		if there[k] == nil {
			there[k] = map[uuid.UUID]bool{}
		}

		there[k][id] = true
	}

	for topic, list := range c.rec.Topics {
		for _, p := range list {
			if p.Causation != uuid.Nil {
				add(topic, p.Causation, p.ID)
			}
		}
	}

	if c.rec.Topics != nil {
		return there
	}

	for _, p := range c.state.published {
		if p.Causation != nil {
			add(p.Topic, *p.Causation, p.ID)
		}
	}

	for topic, consumer := range wire.Consumers {
		for row, by := range c.state.causes {
			if row.consumer == consumer && by != nil {
				add(topic, *by, row.message)
			}
		}
	}

	return there
}

// order checks that what was published about a user is on the topics in the order of the
// events, looking at the first time that each message is there.
func (c *check) order() {
	version := map[uuid.UUID]int{}
	stream := map[uuid.UUID]string{}

	for name, events := range c.state.streams {
		for _, e := range events {
			if version[e.Message] == 0 {
				version[e.Message], stream[e.Message] = e.Version, name
			}
		}
	}

	for _, topic := range []string{"user.profile.updated", "notifications"} {
		seen := map[uuid.UUID]bool{}
		last := map[string]int{}

		for _, p := range c.rec.Topics[topic] {
			name := stream[p.Causation]
			if seen[p.ID] || !strings.HasPrefix(name, "user-") {
				continue
			}

			seen[p.ID] = true

			if v := version[p.Causation]; v < last[name] {
				c.add(Order, fmt.Sprintf("%s on %s, %s@%d", name, topic, p.Place, p.Offset), fmt.Sprintf("a version after %d", last[name]), "version %d, message %s", v, p.ID)
			} else {
				last[name] = v
			}
		}
	}
}

// inbox checks that messages and their effects are recorded once, and for each other.
func (c *check) inbox() {
	for row, n := range c.state.inbox {
		if n > 1 {
			c.add(Inbox, row.consumer+" "+row.message.String(), "one inbox row", "%d", n)
		}
	}

	for topic, list := range c.sent {
		for _, m := range list {
			recorded := c.state.inbox[seen{wire.Consumers[topic], m.ID}] > 0

			switch {
			case m.Fate == record.Applied && !recorded:
				c.add(Inbox, fmt.Sprintf("message %s on %s, key %s", m.ID, topic, m.Key), "an inbox row, because it can be applied", "none, and %s", c.fate(m))
			case m.Fate == record.Aborted && (recorded || c.fate(m) != nowhere):
				c.add(Inbox, fmt.Sprintf("message %s on %s", m.ID, topic), "nothing, because its transaction was aborted", "inbox row: %t, %s", recorded, c.fate(m))
			case m.Fate == record.Stopped && recorded && c.rec.Edited[m.ID] == nil:
				c.add(Inbox, fmt.Sprintf("message %s on %s", m.ID, topic), "no inbox row, because it cannot be applied", "one")
			}
		}
	}

	c.effects()
}

// effects checks that each event has its message in the inbox.
func (c *check) effects() {
	recorded := map[uuid.UUID]bool{}
	for row := range c.state.inbox {
		recorded[row.message] = true
	}

	for stream, events := range c.state.streams {
		for _, e := range events {
			if !recorded[e.Message] {
				c.add(Inbox, fmt.Sprintf("version %d of %s", e.Version, stream), "its message "+e.Message.String()+" in the inbox", "none")
			}
		}
	}

	c.consumed()
}

// consumed checks that what the service published on a consumed topic was applied as well.
func (c *check) consumed() {
	for topic, list := range c.rec.Topics {
		consumer, consumed := wire.Consumers[topic]

		for _, p := range list {
			if consumed && p.Causation != uuid.Nil && c.state.inbox[seen{consumer, p.ID}] == 0 && !c.isFailed(consumer, p.ID) {
				c.add(Inbox, fmt.Sprintf("message %s on %s, %s@%d", p.ID, topic, p.Place, p.Offset), "an inbox row of "+consumer, "none")
			}
		}
	}
}

const nowhere = "it is not among the failed messages"

// fate describes what else is known of a message.
func (c *check) fate(m *record.Message) string {
	for _, f := range c.state.failed {
		if f.Message == m.ID && f.Topic == m.Topic {
			return fmt.Sprintf("failed message %d is %s: %s %s", f.ID, f.State, f.Reason, f.Error)
		}
	}

	return nowhere
}

func (c *check) isFailed(consumer string, id uuid.UUID) bool {
	return slices.ContainsFunc(c.state.failed, func(f failure) bool { return f.Consumer == consumer && f.Message == id })
}

// analytics checks that each tracked event is stored and counted once.
func (c *check) analytics() {
	want, stored := map[string]int64{}, map[uuid.UUID]int{}

	for _, t := range c.state.tracked {
		stored[t.Message]++

		if c.state.inbox[seen{"analytics.track", t.Message}] == 0 {
			c.add(Inbox, "tracked event "+t.Message.String(), "an inbox row", "none")
		}
	}

	for _, m := range c.sent["analytics.track"] {
		want[m.Event]++

		if stored[m.ID] != 1 {
			c.add(Inbox, "tracked event "+m.ID.String(), "to be stored once", "%d times", stored[m.ID])
		}
	}

	if !maps.Equal(want, c.state.daily) {
		c.add(Inbox, "counts of tracked events", fmt.Sprint(want), "%v", c.state.daily)
	}
}

// received returns the bodies that receivers have accepted, by channel and id.
func (c *check) received() map[string]string {
	received := map[string]string{}

	for channel, list := range map[string][]record.Delivery{"email": c.rec.Mails, "webhook": c.rec.Webhooks} {
		for _, d := range list {
			id := strings.TrimPrefix(d.ID, "msg_")
			body, repeated := received[channel+" "+id]

			if repeated && channel == "webhook" && body != d.Body {
				c.add(Inbox, "webhook "+d.ID, "the same body at each attempt", "two")
			}

			received[channel+" "+id] = d.Body

			if parsed, err := uuid.Parse(id); err != nil || c.state.notices[parsed].Channel != channel {
				c.add(Inbox, channel+" "+d.ID, "a recorded notification", "none")
			}
		}
	}

	return received
}

// notifications checks that each notification is recorded once, and that its receiver has
// it if it counts as sent.
func (c *check) notifications() {
	received := c.received()

	for id, n := range c.state.notices {
		if c.state.inbox[seen{"notification." + n.Channel, id}] == 0 {
			c.add(Inbox, "notification "+id.String(), "an inbox row", "none")
		}

		if _, there := received[n.Channel+" "+id.String()]; !there && n.Status == "sent" && n.Channel != "log" {
			c.add(Inbox, n.Channel+" "+id.String()+" to user "+n.User, "to be with its receiver, because it counts as sent", "nothing there")
		}
	}

	for row := range c.state.inbox {
		if channel, ok := strings.CutPrefix(row.consumer, "notification."); ok && channel != "route" && c.state.notices[row.message].Channel != channel {
			c.add(Inbox, row.consumer+" "+row.message.String(), "a recorded notification", "none")
		}
	}
}

// failed compares failed messages with what was sent.
func (c *check) failed() {
	sent := map[uuid.UUID][]*record.Message{}
	for _, m := range c.rec.Messages {
		sent[m.ID] = append(sent[m.ID], m)
	}

	for _, f := range c.state.failed {
		subject := fmt.Sprintf("failed message %d of %s, key %s, message %s", f.ID, f.Consumer, f.Key, f.Message)
		at := slices.IndexFunc(sent[f.Message], func(m *record.Message) bool { return bytes.Equal(m.Payload, f.Payload) })

		switch {
		case f.State == "waiting": // see stuck
		case len(sent[f.Message]) == 0 || f.Message == uuid.Nil:
			c.add(Failed, subject, "no failed message of the service's own", "%s: %s: %s", f.State, f.Reason, f.Error)
		case at < 0:
			c.add(Failed, subject, "the bytes that were sent", "%.100q", f.Payload)
		default:
			c.failure(subject, f, sent[f.Message][at])
		}
	}

	for _, list := range c.sent {
		for _, m := range list {
			if m.Fate == record.Stopped && !slices.ContainsFunc(c.state.failed, func(f failure) bool { return f.Message == m.ID }) {
				c.add(Failed, fmt.Sprintf("message %s on %s", m.ID, m.Topic), "a failed message, because it cannot be applied", "none")
			}
		}
	}

	c.rivals()
}

func (c *check) failure(subject string, f failure, m *record.Message) {
	expected := m.Reason
	if m.Fate == record.Rival {
		expected = "conflict"
	}

	if expected == "" || f.Reason != expected {
		c.add(Failed, subject, fmt.Sprintf("fate %s %s", m.Fate, expected), "%s: %s: %s", f.State, f.Reason, f.Error)
	}

	if edited := c.rec.Edited[m.ID]; edited != nil && (f.State != "resolved" || text(f.Resolution) != "applied" || !bytes.Equal(f.Edited, edited)) {
		c.add(Failed, subject, "applied as edited", "%s, %s: %.100q, %s", f.State, text(f.Resolution), f.Edited, f.Error)
	}

	var headers map[string]any
	if err := json.Unmarshal(f.Headers, &headers); err != nil || headers[wire.NumberHeader] == nil {
		c.add(Failed, subject, "the headers that were sent", "%s", f.Headers)
	}
}

// rivals checks that of several bodies one is applied, and the others are failed messages.
func (c *check) rivals() {
	for id, bodies := range c.orders {
		stopped := 0

		for _, f := range c.state.failed {
			if f.Topic == "orders.created" && f.Key == id && f.Reason == "conflict" {
				stopped++
			}
		}

		distinct := map[int64]bool{}
		for _, b := range bodies {
			distinct[b.Total] = true
		}

		if stopped != len(distinct)-1 {
			c.add(Failed, "order "+id, fmt.Sprintf("%d failed messages, of %d different bodies", len(distinct)-1, len(distinct)), "%d", stopped)
		}
	}
}

// stuck checks that nothing waits.
func (c *check) stuck() {
	for _, f := range c.state.failed {
		if f.State == "waiting" {
			c.add(Stuck, fmt.Sprintf("message %s of %s, key %s", f.Message, f.Consumer, f.Key), "nothing that waits", "%s: %s", f.Reason, f.Error)
		}
	}

	for _, k := range c.state.keys {
		if k.Due != nil || k.Leased != nil {
			c.add(Stuck, "key "+k.Key+" of "+k.Consumer, "no key that is due or leased", "due %v, leased until %v", k.Due, k.Leased)
		}
	}

	for _, p := range c.state.paused {
		c.add(Stuck, p, "a consumer that runs", "a paused one")
	}

	for _, id := range c.state.misses {
		c.add(Stuck, "update "+id.String(), "to be applied, because its user was created", "a miss")
	}
}

// logs looks for personal data in the logs.
func (c *check) logs() error {
	for _, path := range c.rec.Logs {
		log, err := os.ReadFile(filepath.Clean(path))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}

		if err != nil {
			return err
		}

		for line := range bytes.Lines(log) {
			for _, secret := range c.rec.Secrets {
				if bytes.Contains(line, []byte(secret)) {
					c.add(Logs, filepath.Base(path), "no secret", "%.300s", bytes.TrimSpace(line))
				}
			}
		}
	}

	return nil
}
