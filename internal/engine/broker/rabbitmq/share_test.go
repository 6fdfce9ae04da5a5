package rabbitmq_test

import (
	"cmp"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	amqp091 "github.com/rabbitmq/amqp091-go"

	"github.com/millracehq/millrace/internal/engine/broker/driver"
	"github.com/millracehq/millrace/internal/engine/broker/rabbitmq"
	"github.com/millracehq/millrace/internal/engine/broker/window"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/test/brokertest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// replicas subscribe to two queues, one replica after the other. Each has up to window
// messages of a queue in hand.
type replicas struct {
	*testing.T

	cfg          rabbitmq.Config
	small, large string
	channel      *amqp091.Channel
	all          []*replica
}

// replica holds the subscriptions of one, and the messages that it receives, by queue.
type replica struct {
	*rabbitmq.Driver

	subscribers []message.Subscriber
	received    map[string]<-chan *message.Message
}

// newReplicas returns n replicas. If there are args, it declares the queues with them first.
func newReplicas(t *testing.T, n, window int, args amqp091.Table) *replicas {
	t.Helper()

	cfg := rabbitmq.DefaultConfig()
	cfg.URL, cfg.Window = postgres.Secret(brokertest.Address(t, brokertest.RabbitMQ)), window
	r := &replicas{T: t, cfg: cfg, small: brokertest.Topic(), large: brokertest.Topic()}

	conn, err := amqp091.Dial(string(cfg.URL))
	r.must(err)
	t.Cleanup(func() { _ = conn.Close() })

	r.channel, err = conn.Channel()
	r.must(err)

	if args != nil {
		for _, queue := range []string{r.small, r.large} {
			_, err = r.channel.QueueDeclare(queue, true, false, false, false, args)
			r.must(err)
		}
	}

	for range n {
		r.join()
	}

	return r
}

func (r *replicas) must(err error) {
	r.Helper()

	if err != nil {
		r.Fatal(err)
	}
}

// join adds a replica, which is the last in line at both queues.
func (r *replicas) join() {
	r.Helper()
	r.add(&replica{Driver: rabbitmq.New(r.cfg, pgtest.Logger(r.T))})
}

func (r *replicas) add(d *replica) {
	r.Helper()

	d.received = map[string]<-chan *message.Message{}
	r.must(d.Connect(r.Context(), []driver.Topic{{Name: r.small, Consumed: true}, {Name: r.large, Consumed: true}}))
	r.Cleanup(func() { r.leave(d) })

	for _, queue := range []string{r.small, r.large} {
		subscriber, err := d.Subscriber(queue, func([]byte) string { return "" })
		r.must(err)

		d.received[queue], err = subscriber.Subscribe(r.Context(), queue)
		r.must(err)

		d.subscribers = append(d.subscribers, subscriber)
	}

	r.subscribed(d, r.small, nil)
	r.subscribed(d, r.large, nil)
	r.all = append(r.all, d)
}

// leave ends a replica.
func (r *replicas) leave(d *replica) {
	for _, s := range d.subscribers {
		r.must(s.Close())
	}

	r.must(d.Close())
}

// subscribed waits until a replica is in line at a queue, with another subscription than
// before.
func (r *replicas) subscribed(d *replica, queue string, before any) {
	r.Helper()
	pgtest.Eventually(r.T, "the replica has subscribed", func() bool {
		now := d.Subscription(queue)

		return now != nil && now != before
	})
}

// send publishes messages to a queue.
func (r *replicas) send(queue string, payloads ...string) {
	r.Helper()

	for _, payload := range payloads {
		r.must(r.channel.PublishWithContext(r.Context(), "", queue, true, false, amqp091.Publishing{Body: []byte(payload)}))
	}
}

// gets waits until the replica with that index has a message of a queue, which the others
// must not get.
func (r *replicas) gets(index int, queue, payload string) (msg *message.Message) {
	r.Helper()
	pgtest.Eventually(r.T, "a message arrives", func() bool {
		for i, d := range r.all {
			select {
			case received, open := <-d.received[queue]:
				if open && (i != index || string(received.Payload) != payload) {
					r.Fatalf("replica %d got %q, expected replica %d to get %q", i, received.Payload, index, payload)
				}

				msg = cmp.Or(received, msg)
			default:
			}
		}

		return msg != nil
	})

	return msg
}

// fallBehind makes the first replica get messages of both queues, while others wait in the
// large one, and share its queues. It returns the message that it has in hand; 4 and 5
// follow in the large queue.
func (r *replicas) fallBehind() *message.Message {
	r.Helper()

	r.send(r.large, "1", "2", "3", "4", "5")
	r.gets(0, r.large, "1").Ack()
	r.gets(0, r.large, "2").Ack()

	inHand := r.gets(0, r.large, "3")

	r.send(r.small, "a")
	r.gets(0, r.small, "a").Ack()
	r.must(r.all[0].Share(r.Context()))

	return inHand
}

// keeps checks that the first replica still has its subscription to the small queue.
func (r *replicas) keeps(before any) {
	r.Helper()
	r.send(r.small, "kept")
	r.gets(0, r.small, "kept").Ack()

	if r.all[0].Subscription(r.small) != before {
		r.Error("the first replica has passed its small queue on")
	}
}

func TestAQueueIsConsumedByOneReplicaAtATime(t *testing.T) {
	t.Parallel()

	r := newReplicas(t, 2, 3, nil)

	r.send(r.small, "1", "2", "3", "4")
	r.gets(0, r.small, "1").Ack()
	r.gets(0, r.small, "2")
	r.gets(0, r.small, "3").Ack()
	r.gets(0, r.small, "4")

	// The next replica gets what the first had in hand when it ended, and what follows.
	r.leave(r.all[0])
	r.send(r.small, "5")

	for _, payload := range []string{"2", "4", "5"} {
		r.gets(1, r.small, payload).Ack()
	}
}

func TestAReplicaThatCannotKeepUpPassesItsSmallestQueueOn(t *testing.T) {
	t.Parallel()

	r := newReplicas(t, 2, 1, nil)

	first := r.all[0]
	before := first.Subscription(r.small)

	r.send(r.large, "0")
	r.gets(0, r.large, "0").Ack()
	r.send(r.small, "0")
	r.gets(0, r.small, "0").Ack()
	r.must(first.Share(t.Context())) // it keeps up, so it keeps both
	r.keeps(before)

	inHand := r.fallBehind()

	r.subscribed(first, r.small, before) // behind the second
	r.send(r.small, "b")
	r.gets(1, r.small, "b").Ack()

	// It keeps its last queue, although messages wait there.
	inHand.Ack()
	inHand = r.gets(0, r.large, "4")
	r.must(first.Share(t.Context()))
	inHand.Ack()
	r.gets(0, r.large, "5").Ack()

	// The queue comes back. One of two is half of them, so it is not passed on again.
	r.join()
	r.leave(r.all[1])

	before = first.Subscription(r.small)
	inHand = r.fallBehind()

	r.keeps(before)
	inHand.Ack()
	r.gets(0, r.large, "4").Ack()
	r.gets(0, r.large, "5").Ack()
}

// A queue that others have declared may drop what comes back.
func TestAQueueThatOthersHaveDeclaredIsNotPassedOn(t *testing.T) {
	t.Parallel()

	r := newReplicas(t, 2, 1, amqp091.Table{"x-queue-type": "quorum", "x-single-active-consumer": true, "x-delivery-limit": int64(1)})

	before := r.all[0].Subscription(r.small)
	inHand := r.fallBehind()

	r.keeps(before)
	inHand.Ack()
	r.gets(0, r.large, "4").Ack()
	r.gets(0, r.large, "5").Ack()
}

// What is in hand is finished before another replica gets the queue.
func TestAQueueIsPassedOnWhenNothingIsInHand(t *testing.T) {
	t.Parallel()

	r := newReplicas(t, 2, 2, nil)

	first := r.all[0]
	before := first.Subscription(r.small)

	r.send(r.large, "1", "2", "3", "4", "5", "6")
	r.gets(0, r.large, "1").Ack()
	r.gets(0, r.large, "2").Ack()
	three, four := r.gets(0, r.large, "3"), r.gets(0, r.large, "4")

	r.send(r.small, "a")

	inHand := r.gets(0, r.small, "a")

	r.must(first.Share(t.Context()))
	r.send(r.small, "b") // the first must not take it any more, and the second not yet
	three.Ack()
	four.Ack()
	r.gets(0, r.large, "5").Ack()
	r.gets(0, r.large, "6").Ack()

	if first.Subscription(r.small) != before {
		t.Error("the queue was passed on with a message in hand")
	}

	inHand.Ack()
	r.subscribed(first, r.small, before)
	r.gets(1, r.small, "b").Ack()
}

// RabbitMQ 4.3 returns a message that is in hand for too long, without those behind it. A new
// subscription gets all of them, in order.
func TestASubscriptionIsRenewedBeforeAMessageIsInHandForTooLong(t *testing.T) {
	t.Parallel()

	for name, of := range map[string]struct{ messages, size int }{
		"with room in the window":  {messages: 2, size: 1},
		"while the window is full": {messages: 17, size: window.MaxBytes / 16},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			r := newReplicas(t, 0, of.messages, nil)
			d := &replica{Driver: rabbitmq.New(r.cfg, pgtest.Logger(t))}
			d.RenewAfter(100 * time.Millisecond)
			r.add(d)

			for i := range of.messages {
				r.send(r.small, strings.Repeat(string(rune('a'+i)), of.size))
			}

			// None is answered until the first comes again.
			last, firsts, acked := -1, 0, map[int]bool{}
			for len(acked) < of.messages {
				msg := r.next(d, r.small)

				n := int(msg.Payload[0] - 'a')
				if n > last+1 {
					t.Fatalf("message %d came after message %d", n, last)
				}

				if n == 0 {
					firsts++
				}

				if firsts > 1 {
					msg.Ack()

					acked[n] = true
				}

				last = n
			}
		})
	}
}

// next waits for the next message of a queue that a replica gets.
func (r *replicas) next(d *replica, queue string) (msg *message.Message) {
	r.Helper()
	pgtest.Eventually(r.T, "a message arrives", func() bool {
		select {
		case msg = <-d.received[queue]:
		default:
		}

		return msg != nil
	})

	return msg
}
