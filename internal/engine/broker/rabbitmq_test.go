package broker_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	amqp091 "github.com/rabbitmq/amqp091-go"

	"github.com/millracehq/millrace/internal/engine/broker"
	"github.com/millracehq/millrace/internal/engine/broker/driver"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/test/brokertest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// rabbit is a vhost on this test's server, with an account that may do anything.
type rabbit struct {
	*testing.T

	server      *brokertest.Server
	vhost, user string
	// log holds what the connections under test have logged.
	log *lines
}

// on runs a test in a vhost of its own.
func on(server *brokertest.Server, test func(*rabbit)) func(*testing.T) {
	return func(t *testing.T) {
		t.Parallel()

		r := &rabbit{T: t, server: server, vhost: brokertest.Topic(), log: &lines{}}
		r.user = r.vhost
		// Use one call, because each starts a virtual machine.
		server.Do("ctl", "eval", strings.NewReplacer("VHOST", r.vhost, "USER", r.user).Replace(`
			rabbit_vhost:add(<<"VHOST">>, <<"test">>),
			rabbit_auth_backend_internal:add_user(<<"USER">>, <<"secret">>, <<"test">>),
			[rabbit_auth_backend_internal:set_permissions(U, <<"VHOST">>, <<".*">>, <<".*">>, <<".*">>, <<"test">>) || U <- [<<"USER">>, <<"guest">>]].`))
		test(r)
	}
}

// allow sets the patterns for the names that the account may configure, write and read.
func (r *rabbit) allow(configure, write, read string) {
	r.Helper()
	r.server.Do("ctl", "set_permissions", "-p", r.vhost, r.user, configure, write, read)
}

func (r *rabbit) url(user, password string) string {
	return fmt.Sprintf("amqp://%s:%s@127.0.0.1:%s/%s", user, password, r.server.Port, r.vhost)
}

// administer calls fn with a channel of an account that may do anything in the vhost.
func (r *rabbit) administer(fn func(*amqp091.Channel) error) error {
	r.Helper()

	conn, err := amqp091.Dial(r.url("guest", "guest"))
	if err != nil {
		r.Fatal(err)
	}
	defer conn.Close()

	channel, err := conn.Channel()
	if err != nil {
		r.Fatal(err)
	}

	return fn(channel)
}

// declare declares a queue as another application or an operator would.
func (r *rabbit) declare(name string, durable bool, args amqp091.Table) {
	r.Helper()

	must(r, r.administer(func(ch *amqp091.Channel) error {
		_, err := ch.QueueDeclare(name, durable, false, false, false, args)

		return err
	}))
}

// waiting returns the number of messages ready in a queue, or -1 if it does not exist.
func (r *rabbit) waiting(name string) (n int) {
	r.Helper()

	n = -1
	_ = r.administer(func(ch *amqp091.Channel) error {
		q, err := ch.QueueDeclarePassive(name, false, false, false, false, nil)
		if err == nil {
			n = q.Messages
		}

		return err
	})

	return n
}

func (r *rabbit) config() broker.Config {
	cfg := rabbitMQHarness(r.url(r.user, "secret")).config
	cfg.RabbitMQ.Exchange = "shop"

	return cfg
}

// connect connects with some topics; those whose names begin with "out" are only
// published to.
func (r *rabbit) connect(cfg broker.Config, topics ...string) *connection {
	r.Helper()

	conn, err := broker.New(cfg, slog.New(slog.NewTextHandler(r.log, nil)))
	if err != nil {
		r.Fatal(err)
	}

	r.Cleanup(func() {
		if r.Failed() {
			r.Logf("log: %s", r.log.with(""))
		}

		if err := conn.Close(); err != nil {
			r.Error(err)
		}
	})

	ctx, cancel := context.WithTimeout(r.Context(), timeout)
	defer cancel()

	var list []broker.Topic
	for _, topic := range topics {
		list = append(list, broker.Topic{Name: topic, Consumed: !strings.HasPrefix(topic, "out")})
	}

	if err := conn.Connect(ctx, list); err != nil {
		r.Fatal(err)
	}

	return &connection{Conn: conn}
}

// passes checks that a message published on a topic is consumed.
func (r *rabbit) passes(conn *connection, topics ...string) {
	r.Helper()

	for _, topic := range topics {
		received := consume(r, conn, topic, nil)

		if err := conn.Publisher().Publish(topic, newMessage("k", topic)); err != nil {
			r.Errorf("%s: %v", topic, err)

			continue
		}

		if got := received.wait(r, 1)[0]; string(got.Payload) != topic {
			r.Errorf("%s: got %s", topic, got.Payload)
		}
	}
}

// lines is a log that is read by the line.
type lines struct{ pgtest.Log }

// with returns the lines that contain all of the strings.
func (l *lines) with(texts ...string) (found []string) {
	for line := range strings.Lines(l.String()) {
		all := true
		for _, text := range texts {
			all = all && strings.Contains(line, text)
		}

		if all {
			found = append(found, line)
		}
	}

	return found
}

// TestRabbitMQAsOthersRunIt covers what can go wrong on an organization's RabbitMQ, and
// how it can differ from ours.
func TestRabbitMQAsOthersRunIt(t *testing.T) { //nolint:tparallel // the last of its tests concerns the whole server
	t.Parallel()

	server := brokertest.NewServer(t, "rabbitmq.sh")

	t.Run("in vhosts", func(t *testing.T) { //nolint:paralleltest // the alarm waits for it
		t.Run("queues that were declared differently are used", on(server, differentQueues))
		t.Run("an account that cannot configure uses what exists", on(server, withoutConfigure))
		t.Run("nothing is declared unless allowed", on(server, withoutDeclaring))
		t.Run("a wrong password is named", on(server, wrongPassword))
		t.Run("what was deleted is created again", on(server, deleted))
		t.Run("a missing exchange is not a topic", on(server, missingExchange))
		t.Run("bindings are restored with their exchange", on(server, bindings))
		t.Run("an alternate exchange hides no missing queue", on(server, alternateExchange))
		t.Run("a queue that moves gives back older messages first", on(server, movedQueue))
		t.Run("a message that is too large is refused alone", on(server, tooLarge))
		t.Run("a full queue delays no other", on(server, full))
		t.Run("a queue that does not answer delays no other", on(server, silentQueue))
		t.Run("a slow login is not a wrong password", on(server, slowLogin))
		t.Run("a ping notices that consumers are not connected", on(server, consumersLost))
		t.Run("a delivery limit drops nothing while a consumer is paused", on(server, deliveryLimit))
		t.Run("thirteen queues are subscribed quickly", on(server, thirteen))
		t.Run("a second host is tried", on(server, secondHost))
	})

	// The alarm affects the whole server.
	t.Run("a memory alarm is noticed and delays no shutdown", on(server, memoryAlarm))
}

func differentQueues(r *rabbit) {
	r.declare("classic", true, nil)
	r.declare("ttl", true, amqp091.Table{"x-message-ttl": int64(60_000)})
	r.declare("volatile", false, nil)
	r.declare("short", true, amqp091.Table{"x-queue-type": "quorum", "x-max-length": int64(100)})

	topics := []string{"classic", "ttl", "volatile", "short", "ours"}
	conn := r.connect(r.config(), topics...)
	r.passes(conn, topics...)
	must(r, conn.Close())

	warned := r.log.with("level=WARN", "differ from what Millrace would declare", "'classic'", "'ttl'", "'volatile'", "'short'")
	if len(warned) != 1 || strings.Contains(warned[0], "'ours'") {
		r.Errorf("one line should name what differs: %s", r.log.with("level=WARN"))
	}
}

func withoutConfigure(r *rabbit) {
	must(r, r.connect(r.config(), "one", "two", "out").Close())
	r.allow("^$", ".*", ".*")

	conn := r.connect(r.config(), "one", "missing", "two", "out")
	_ = consume(r, conn, "missing", nil)
	r.passes(conn, "one", "two")
	must(r, conn.Publisher().Publish("out", newMessage("k", "1")))

	err := conn.Publisher().Publish("missing", newMessage("k", "1"))
	if refused, ok := errors.AsType[*driver.RefusedError](err); !ok || refused.Scope != driver.OneTopic || !strings.Contains(refused.Remedy, "permission") {
		r.Errorf("got %v, expected that the topic is refused", err)
	}

	pgtest.Eventually(r, "the subscription is refused with a remedy", func() bool {
		refusal := conn.Refusal("missing")

		return refusal != nil && strings.Contains(refusal.Err.Error(), "queue missing does not exist") && strings.Contains(refusal.Remedy(), "create queue missing")
	})

	if conn.Refusal("one") != nil || !conn.State().Up() {
		r.Error("a topic that is missing affects others")
	}

	r.declare("missing", true, nil)
	pgtest.Eventually(r, "the topic is subscribed once it exists", func() bool { return conn.Refusal("missing") == nil })
	must(r, conn.Close())
}

func withoutDeclaring(r *rabbit) {
	cfg := r.config()
	cfg.RabbitMQ.Declare = false

	r.declare("theirs", true, nil)
	must(r, r.administer(func(ch *amqp091.Channel) error {
		return errors.Join(ch.ExchangeDeclare("shop", "topic", true, false, false, false, nil), ch.QueueBind("theirs", "#", "shop", false, nil))
	}))

	conn := r.connect(cfg, "theirs", "missing")
	_ = consume(r, conn, "missing", nil)
	r.passes(conn, "theirs")

	pgtest.Eventually(r, "the missing queue is named", func() bool {
		refusal := conn.Refusal("missing")

		return refusal != nil && strings.Contains(refusal.Remedy(), "broker.rabbitmq.declare")
	})
	must(r, conn.Close())

	for _, name := range []string{"missing", "shop.dropped"} {
		if r.waiting(name) >= 0 {
			r.Errorf("queue %s was declared", name)
		}
	}
}

func wrongPassword(r *rabbit) {
	cfg := r.config()
	cfg.RabbitMQ.URL = postgres.Secret(r.url(r.user, "wrong"))

	conn, err := broker.New(cfg, slog.New(slog.NewTextHandler(r.log, nil)))
	if err != nil {
		r.Fatal(err)
	}

	ctx, cancel := context.WithCancel(r.Context())
	ended := make(chan error, 1)

	go func() { ended <- conn.Connect(ctx, nil) }()

	pgtest.Eventually(r, "the state says so", func() bool {
		return strings.Contains(conn.State().Why, "authentication failed: wrong user")
	})

	pgtest.Eventually(r, "the log says so", func() bool { return len(r.log.with("level=WARN", "authentication failed")) == 1 })

	r.server.Do("ctl", "change_password", r.user, "wrong") // now the configured password is right
	must(r, <-ended)
	cancel()
	must(r, conn.Close())
}

func deleted(r *rabbit) {
	conn := r.connect(r.config(), "in", "out")
	received := consume(r, conn, "in", nil)

	for name, remove := range map[string]func(*amqp091.Channel) error{
		"the queue of a published topic": func(ch *amqp091.Channel) error {
			_, err := ch.QueueDelete("out", false, false, false)

			return err
		},
		"the queue of a consumed topic": func(ch *amqp091.Channel) error {
			_, err := ch.QueueDelete("in", false, false, false)

			return err
		},
		"the exchange": func(ch *amqp091.Channel) error { return ch.ExchangeDelete("shop", false, false) },
	} {
		must(r, r.administer(remove))

		before := len(received.all())

		for _, topic := range []string{"out", "in"} {
			if err := conn.Publisher().Publish(topic, newMessage("k", name)); err != nil {
				r.Errorf("%s is deleted: publishing on %s: %v", name, topic, err)
			}
		}

		received.wait(r, before+1)

		if r.waiting("out") < 1 {
			r.Errorf("%s was deleted, and the message is lost", name)
		}
	}

	must(r, conn.Close())
}

// remove deletes the named queues, and then the exchange if it is named too.
func (r *rabbit) remove(names ...string) {
	r.Helper()

	must(r, r.administer(func(ch *amqp091.Channel) (err error) {
		for _, name := range names {
			if name == "shop" {
				err = errors.Join(err, ch.ExchangeDelete(name, false, false))
			} else {
				_, deleted := ch.QueueDelete(name, false, false, false)
				err = errors.Join(err, deleted)
			}
		}

		return err
	}))
}

// send publishes a message to the exchange as another application would, if the exchange
// exists.
func (r *rabbit) send(topic string) {
	r.Helper()

	_ = r.administer(func(ch *amqp091.Channel) error {
		return ch.PublishWithContext(r.Context(), "shop", topic, false, false, amqp091.Publishing{Body: []byte("theirs")})
	})
}

func missingExchange(r *rabbit) {
	must(r, r.connect(r.config(), "in", "out").Close())
	r.remove("shop")
	r.allow("^$", ".*", ".*")

	conn := r.connect(r.config(), "in", "out")
	received := consume(r, conn, "in", nil)

	err := conn.Publisher().Publish("out", newMessage("k", "1"))
	if refused, ok := errors.AsType[*driver.RefusedError](err); !ok || refused.Scope != driver.OneTopic || refused.Topic != "out" ||
		!strings.Contains(err.Error(), "exchange shop does not exist") || !strings.Contains(refused.Remedy, "create exchange shop") {
		r.Errorf("got %v, expected that topic out is refused because of the exchange", err)
	}

	if named := r.log.with("a topic (shop)"); len(named) > 0 || len(r.log.with("level=WARN", "exchange shop does not exist", "remedy=")) != 1 {
		r.Errorf("the exchange should be named once, and not as a topic: %s", r.log.with("level=WARN"))
	}

	brokertest.ProduceRabbitMQ(r, r.config(), "in", brokertest.Foreign{Payload: []byte("sent to the queue")})
	received.wait(r, 1)
	must(r, conn.Close())
}

func bindings(r *rabbit) {
	conn := r.connect(r.config(), "in", "in.other", "out", "out.other")
	received, other := consume(r, conn, "in", nil), consume(r, conn, "in.other", nil)

	r.remove("shop")
	must(r, conn.Publisher().Publish("out", newMessage("k", "1")))

	for _, topic := range []string{"in", "in.other", "out.other", "shop.dropped"} {
		r.send(topic)
	}

	received.wait(r, 1)
	other.wait(r, 1)
	pgtest.Eventually(r, "the queues of all topics are bound", func() bool { return r.waiting("out.other") == 1 && r.waiting("shop.dropped") == 1 })

	r.remove("in", "shop")
	pgtest.Eventually(r, "a queue that was deleted with the exchange is bound", func() bool {
		r.send("in")

		return len(received.all()) > 1
	})
	must(r, conn.Close())
}

func alternateExchange(r *rabbit) {
	must(r, r.administer(func(ch *amqp091.Channel) error {
		_, err := ch.QueueDeclare("unroutable", true, false, false, false, nil)

		return errors.Join(err,
			ch.ExchangeDeclare("shop.unroutable", "fanout", true, false, false, false, nil),
			ch.QueueBind("unroutable", "", "shop.unroutable", false, nil),
			ch.ExchangeDeclare("shop", "direct", true, false, false, false, amqp091.Table{"alternate-exchange": "shop.unroutable"}))
	}))

	conn := r.connect(r.config(), "out")

	if warned := r.log.with("level=WARN", "alternate", "remedy=", "delete exchange shop"); len(warned) != 1 {
		r.Errorf("one line should name the alternate exchange: %s", r.log.with("level=WARN"))
	}

	r.remove("out")
	must(r, conn.Publisher().Publish("out", newMessage("k", "1")))
	pgtest.Eventually(r, "a regular ping restores the queue and its binding", func() bool {
		conn.Check(r.Context())
		must(r, conn.Publisher().Publish("out", newMessage("k", "2")))

		return r.waiting("out") > 0
	})
	must(r, conn.Close())
}

// movedQueue deletes a queue. RabbitMQ then ends the subscription as it does when the
// queue's node stops: without closing the channel.
func movedQueue(r *rabbit) {
	conn := r.connect(r.config(), "in")
	second, done := make(chan struct{}), make(chan struct{})

	received := consume(r, conn, "in", func(msg *message.Message) {
		if string(msg.Payload) == "2" {
			close(second)
			msg.Ack()

			return
		}

		<-msg.Context().Done()

		select {
		case <-second:
			r.Error("a later message of the key was delivered while the first was in hand")
		case <-time.After(1500 * time.Millisecond): // a window waits 2 s
		}

		msg.Ack()
		close(done)
	})

	must(r, conn.Publisher().Publish("in", newMessage("k", "1")))
	received.wait(r, 1)
	r.remove("in")
	must(r, conn.Publisher().Publish("in", newMessage("k", "2")))
	<-done
	received.wait(r, 2)
	must(r, conn.Close())
}

// silentQueue publishes to a quorum queue that does not confirm, as if most of its nodes
// were down.
func silentQueue(r *rabbit) {
	r.declare("out.full", true, amqp091.Table{"x-max-length": int64(1), "x-overflow": "reject-publish"})

	conn := r.connect(r.config(), "out.full", "out.silent")

	for _, topic := range []string{"out.full", "out.silent"} {
		must(r, conn.Publisher().Publish(topic, newMessage("k", "1")))
	}

	act := func(verb string) {
		r.server.Do("ctl", "eval", fmt.Sprintf(
			`{ok, Q} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"%s">>, queue, <<"out.silent">>)), {Name, _} = amqqueue:get_pid(Q), sys:%s(Name).`, r.vhost, verb))
	}

	act("suspend")
	defer act("resume")

	answer := make(chan error, 1)

	go func() { answer <- conn.Publisher().Publish("out.silent", newMessage("k", "1")) }()

	pgtest.Eventually(r, "the silent queue is refused while the full one answers", func() bool {
		if err := conn.Publisher().Publish("out.full", newMessage("k", "2")); err == nil || !strings.Contains(err.Error(), "out.full is full") {
			r.Errorf("got %v, expected that the queue is full", err)
		}

		select {
		case err := <-answer:
			if refused, ok := errors.AsType[*driver.RefusedError](err); !ok || refused.Topic != "out.silent" {
				r.Errorf("got %v, expected that the topic is refused", err)
			}

			return true
		default:
			return false
		}
	})
	must(r, conn.Close())
}

func slowLogin(r *rabbit) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(r, err)

	defer listener.Close()

	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}

			r.Cleanup(func() { _ = client.Close() })

			server, err := net.Dial("tcp", "127.0.0.1:"+r.server.Port)
			if err != nil {
				return
			}

			r.Cleanup(func() { _ = server.Close() })

			go func() { _, _ = io.Copy(server, client) }()

			// Forward everything before the login, and nothing after it.
			greeting := make([]byte, 64<<10)
			n, _ := server.Read(greeting)
			_, _ = client.Write(greeting[:n])
		}
	}()

	cfg := r.config()
	cfg.RabbitMQ.URL = postgres.Secret(strings.Replace(string(cfg.RabbitMQ.URL), "127.0.0.1:"+r.server.Port, listener.Addr().String(), 1))

	conn, err := broker.New(cfg, slog.New(slog.NewTextHandler(r.log, nil)))
	must(r, err)

	_, err = conn.Backlogs(r.Context(), []string{"in"})
	if _, refused := errors.AsType[*driver.RefusedError](err); err == nil || refused || !strings.Contains(err.Error(), "did not respond to the login") {
		r.Errorf("got %v, expected that the login was not answered", err)
	}

	must(r, conn.Close())
}

func consumersLost(r *rabbit) {
	conn := r.connect(r.config(), "out")
	conn.Check(r.Context())

	if state := conn.State(); !state.Up() {
		r.Errorf("got %+v", state)
	}

	r.server.Do("ctl", "change_password", r.user, "other") // affects only new connections
	r.server.Do("ctl", "eval", fmt.Sprintf(`[rabbit_networking:close_connection(proplists:get_value(pid, C), "by the test") ||
		C <- rabbit_networking:connection_info_all([pid, user, client_properties]), proplists:get_value(user, C) =:= <<"%s">>,
		lists:keyfind(<<"connection_name">>, 1, proplists:get_value(client_properties, C)) =:= {<<"connection_name">>, longstr, <<"millrace consumers">>}].`, r.user))

	pgtest.Eventually(r, "the broker counts as unavailable", func() bool {
		conn.Check(r.Context())

		return strings.Contains(conn.State().Why, "authentication failed")
	})
	must(r, conn.Close())
}

// The hosts accept connections but never respond, as if behind a firewall.
func TestConnectingToRabbitMQEndsWithItsContext(t *testing.T) {
	t.Parallel()

	var hosts []string

	for range 3 {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		must(t, err)
		t.Cleanup(func() { _ = listener.Close() })

		hosts = append(hosts, listener.Addr().String())
	}

	cfg := rabbitMQHarness("amqp://guest:guest@" + hosts[0] + "/").config
	cfg.RabbitMQ.Hosts = hosts[1:]

	conn, err := broker.New(cfg, pgtest.Logger(t))
	must(t, err)

	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()

	started := time.Now()

	if err := conn.Connect(ctx, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}

	must(t, conn.Close())

	if took := time.Since(started); took > 4*time.Second {
		t.Errorf("connecting and closing took %s", took)
	}

	if err := conn.Ping(t.Context()); !errors.Is(err, driver.ErrClosed) {
		t.Errorf("got %v, expected that the connection is closed", err)
	}
}

func tooLarge(r *rabbit) {
	conn := r.connect(r.config(), "out")

	var others sync.WaitGroup

	stop := make(chan struct{})

	for n := range 4 {
		others.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}

				if err := conn.Publisher().Publish("out", newMessage(fmt.Sprint(n), "small")); err != nil {
					r.Errorf("another message: %v", err)

					return
				}
			}
		})
	}

	huge := newMessage("k", strings.Repeat("x", 33<<20)) // scripts/rabbitmq.sh allows 32 MiB

	for range 2 {
		err := conn.Publisher().Publish("out", huge)
		if refused, ok := errors.AsType[*driver.RefusedError](err); !ok || refused.Scope != driver.OneMessage || !strings.Contains(err.Error(), "too large") {
			r.Errorf("got %v, expected that the message is refused", err)
		}
	}

	for name, change := range map[string]func(*message.Message){
		"a header's name is too long":    func(msg *message.Message) { msg.Metadata[strings.Repeat("x", 300)] = "" },
		"the headers are too large":      func(msg *message.Message) { msg.Metadata["large"] = strings.Repeat("x", 200_000) },
		"the content type is too long":   func(msg *message.Message) { msg.Metadata[event.HeaderContentType] = strings.Repeat("x", 300) },
		"headers as large as is allowed": func(msg *message.Message) { msg.Metadata["large"] = strings.Repeat("x", 119_000) },
	} {
		msg := newMessage("k", "1")
		change(msg)

		err := conn.Publisher().Publish("out", msg)
		if refused, ok := errors.AsType[*driver.RefusedError](err); ok && refused.Scope != driver.OneMessage || ok == (name == "headers as large as is allowed") {
			r.Errorf("%s: got %v", name, err)
		}
	}

	close(stop)
	others.Wait()

	r.server.Do("ctl", "eval", `application:set_env(rabbit, max_message_size, 67108864).`)
	r.server.Do("ctl", "close_all_connections", "--vhost", r.vhost, "restarted with another limit")
	pgtest.Eventually(r, "the message is accepted after the limit was raised", func() bool { return conn.Publisher().Publish("out", huge) == nil })
	must(r, conn.Close())
}

func full(r *rabbit) {
	r.declare("out.full", true, amqp091.Table{"x-max-length": int64(1), "x-overflow": "reject-publish"})

	conn := r.connect(r.config(), "out.full", "out.other")
	must(r, conn.Publisher().Publish("out.full", newMessage("k", "1")))

	if err := conn.Publisher().Publish("out.full", newMessage("k", "2")); err == nil || !strings.Contains(err.Error(), "out.full is full") {
		r.Errorf("got %v, expected that the queue is full", err)
	}

	must(r, conn.Publisher().Publish("out.other", newMessage("k", "1")))
	must(r, conn.Close())
}

func deliveryLimit(r *rabbit) {
	r.server.Do("ctl", "set_policy", "-p", r.vhost, "limit", ".*", `{"delivery-limit": 1}`)

	conn := r.connect(r.config(), "in")
	refused := 0
	received := consume(r, conn, "in", func(msg *message.Message) {
		if refused++; refused < 4 { // as the router does with a paused consumer
			msg.Nack()
		} else {
			msg.Ack()
		}
	})

	must(r, conn.Publisher().Publish("in", newMessage("k", "1")))
	received.wait(r, 4)
	must(r, conn.Close())

	// A process that ends returns the messages that it has in hand.
	conn = r.connect(r.config(), "in")
	must(r, conn.Publisher().Publish("in", newMessage("k", "2")))

	for range 2 {
		consume(r, conn, "in", func(*message.Message) {}).wait(r, 1)
		must(r, conn.Close())
		conn = r.connect(r.config(), "in")
	}

	pgtest.Eventually(r, "what the limit drops is kept", func() bool { return r.waiting("shop.dropped") == 1 })
	must(r, conn.Close())
}

func thirteen(r *rabbit) {
	var topics []string
	for n := range 13 {
		topics = append(topics, fmt.Sprintf("in.%d", n))
	}

	started := time.Now()
	conn := r.connect(r.config(), topics...)

	for _, topic := range topics {
		_ = consume(r, conn, topic, nil)
	}

	pgtest.Eventually(r, "all are subscribed", func() bool {
		list, err := conn.Backlogs(r.Context(), topics)
		if err != nil {
			r.Fatal(err)
		}

		for _, b := range list {
			if b.Err != nil || b.Subscriptions != 1 {
				return false
			}
		}

		return true
	})
	r.Logf("13 queues were declared and subscribed in %s", time.Since(started))

	if took := time.Since(started); took > 5*time.Second { // even on a busy machine
		r.Errorf("took %s", took)
	}

	must(r, conn.Close())
}

func secondHost(r *rabbit) {
	cfg := r.config()
	cfg.RabbitMQ.URL = postgres.Secret(strings.Replace(string(cfg.RabbitMQ.URL), ":"+r.server.Port+"/", ":1/", 1))
	cfg.RabbitMQ.Hosts = []string{"127.0.0.1:" + r.server.Port}

	conn := r.connect(cfg, "in")
	r.passes(conn, "in")
	must(r, conn.Close())
}

func memoryAlarm(r *rabbit) {
	conn := r.connect(r.config(), "in", "in.later", "out")
	received := consume(r, conn, "in", nil)
	must(r, conn.Publisher().Publish("in", newMessage("k", "1")))
	must(r, conn.Publisher().Publish("in.later", newMessage("k", "1")))
	received.wait(r, 1)

	r.server.Do("ctl", "set_vm_memory_high_watermark", "absolute", "1MB")
	defer r.server.Do("ctl", "set_vm_memory_high_watermark", "absolute", "1GB")

	pgtest.Eventually(r, "publishing fails because the broker is blocked", func() bool {
		started := time.Now()
		err := conn.Publisher().Publish("out", newMessage("k", "2"))

		if took := time.Since(started); took > 20*time.Second {
			r.Errorf("publishing took %s", took)
		}

		return errors.Is(err, driver.ErrBlocked)
	})
	conn.Check(r.Context())

	if state := conn.State(); !state.Blocked || state.Up() || !strings.Contains(state.Why, "memory") || conn.Down() != "rabbitmq is not accepting messages" {
		r.Errorf("got %+v, expected that the broker is blocked", state)
	}

	consume(r, conn, "in.later", nil).wait(r, 1)

	again := r.connect(r.config(), "in", "out") // a replica that starts during the alarm

	r.server.Do("ctl", "set_vm_memory_high_watermark", "absolute", "1GB")
	pgtest.Eventually(r, "publishing works again", func() bool { return conn.Publisher().Publish("out", newMessage("k", "3")) == nil })
	conn.Check(r.Context())

	if state := conn.State(); !state.Up() || state.Blocked {
		r.Errorf("got %+v, expected that the broker is not blocked", state)
	}

	r.server.Do("ctl", "set_vm_memory_high_watermark", "absolute", "1MB")
	pgtest.Eventually(r, "publishing fails again", func() bool { return conn.Publisher().Publish("out", newMessage("k", "4")) != nil })

	started := time.Now()

	must(r, errors.Join(conn.Close(), again.Close()))

	if took := time.Since(started); took > 10*time.Second {
		r.Errorf("closing a blocked connection took %s", took)
	}
}
