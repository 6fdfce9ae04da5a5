package app_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millracehq/millrace/internal/config"
	"github.com/millracehq/millrace/internal/engine/activity"
	"github.com/millracehq/millrace/internal/engine/broker"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/test/apptest"
	"github.com/millracehq/millrace/internal/test/brokertest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// Each message arrives before the message on another topic that it depends on.
func TestAMessageAwaitsTheOneThatItDependsOn(t *testing.T) {
	t.Parallel()

	const (
		create       = `{"user":{"id":"u","name":"Ann","email":"ann@example.com"}}`
		createLegacy = `{"userId":"u","userName":"Ann","userEmail":"ann@example.com","action":"createUser"}`
		place        = `{"order":{"id":"u","product_id":"product_1","quantity":1,"total_amount":5}}`
		updated      = `SELECT count(*) FROM events WHERE stream = 'user-u' AND type = 'UserNameUpdated'`
	)

	for _, c := range []struct {
		topic, later string
		awaits       string
		earlierOn    string
		earlier      string
		applied      string // counts 1 when both have been applied
	}{
		{"user.updated", `{"user_id":"u","updates":{"name":"Eve"}}`, "user.created or user.events", "user.created", create, updated},
		{"user.updated", `{"user_id":"u","updates":{"name":"Eve"}}`, "user.created or user.events", "user.events", createLegacy, updated},
		{"user.events", `{"userId":"u","action":"update","userName":"Eve"}`, "user.created or user.events", "user.created", create, updated},
		{"user.events", `{"userId":"u","action":"update","userName":"Eve"}`, "user.created or user.events", "user.events", createLegacy, updated},
		{
			"notifications", `{"user_id":"u","content":"hi"}`, "user.created or user.events", "user.created", create,
			`SELECT count(*) / 2 FROM notifications WHERE user_id = 'u'`, // the other one is the welcome
		},
		{
			"orders.cancel.requested", `{"order_id":"u","reason":"no"}`, "orders.created", "orders.created", place,
			`SELECT count(*) FROM orders WHERE id = 'u' AND status IN ('cancelled', 'completed')`,
		},
		{
			"payments.reported", `{"order_id":"u","outcome":"captured","transaction_id":"t1","amount":5,"currency":"USD"}`, "orders.created", "orders.created", place,
			`SELECT count(*) FROM events WHERE stream = 'order-u' AND type IN ('OrderPaid', 'PaymentCapturedLate') AND data ->> 'transaction_id' = 't1'`,
		},
	} {
		t.Run(c.topic+" before "+c.earlierOn, func(t *testing.T) {
			t.Parallel()

			s := apptest.Start(t)
			s.ExpectFailures() // the test's provider does not know t1
			s.Seed()
			s.Publish(c.topic, c.later)

			first := firstWaiting(t, s, "u")
			if !strings.HasSuffix(first.Error, "; awaiting "+c.awaits) || strings.Join(first.Awaits, " or ") != c.awaits || first.Attempts != 0 || first.Reason != "early" {
				t.Errorf("it waits for %v with %d attempts: %s: %s", first.Awaits, first.Attempts, first.Reason, first.Error)
			}

			s.Publish(c.earlierOn, c.earlier)
			pgtest.Eventually(t, "both are applied", func() bool { return apptest.Value[int](s, c.applied) == 1 })
			s.WaitUntilIdle()

			if n := apptest.Value[int](s, `SELECT (SELECT count(*) FROM failed_messages WHERE topic <> 'payments.refund.requested') + (SELECT count(*) FROM user_misses)`); n != 0 {
				t.Errorf("%d messages failed or were missed", n)
			}
		})
	}
}

// firstWaiting waits until a key has a waiting message, and returns the first one.
func firstWaiting(t *testing.T, s *apptest.Service, key string) (first failed.WaitingEntry) {
	t.Helper()
	pgtest.Eventually(t, "a message waits", func() bool {
		list, err := s.Failed.WaitingKeys(t.Context(), failed.KeyFilter{Key: key}, 2)
		if err != nil || len(list) == 0 {
			return false
		}

		first = list[0]

		return true
	})

	return first
}

// A message that came too early keeps its place ahead of later messages with its key.
func TestEarlyMessagesKeepTheOrderOfTheirKey(t *testing.T) {
	t.Parallel()

	for _, creation := range []string{"user.created", "user.events"} {
		t.Run(creation, func(t *testing.T) {
			t.Parallel()

			s := apptest.Start(t)
			for _, name := range []string{"B", "C", "D"} {
				s.Publish("user.events", fmt.Sprintf(`{"userId":"u","action":"update","userName":%q}`, name))
			}

			pgtest.Eventually(t, "they wait", func() bool { return apptest.Value[int](s, `SELECT count(*) FROM failed_messages`) == 3 })

			payload := `{"user":{"id":"u","name":"A","email":"a@example.com"}}`
			if creation == "user.events" {
				payload = `{"userId":"u","action":"create","userName":"A","email":"a@example.com"}`
			}

			s.Publish(creation, payload)
			s.WaitUntilIdle()

			details, err := s.Users.Show(t.Context(), "u")
			if err != nil || details.Name != "D" || details.Version != 4 {
				t.Errorf("got %+v, %v", details.User, err)
			}
		})
	}
}

// A message awaits another one for a limited time. The clock is stopped while the other
// message's consumer is paused, or while the other message is a failed message.
func TestAnUpdateAwaitsAUserWhoseCreationIsHeldUp(t *testing.T) {
	t.Parallel()

	by := activity.Actor{Who: "test", Why: "to see"}

	s := apptest.Start(t, func(c *config.Config) { c.Consumer.AwaitTimeout = 3 * time.Second })
	s.ExpectFailures()

	if _, err := s.Router.Pause(t.Context(), "account.create", 0, by); err != nil {
		t.Fatal(err)
	}

	pgtest.Eventually(t, "the service knows of the pause", func() bool { return s.Router.Stalled("user.created") != "" })
	s.Publish("user.updated", `{"user_id":"paused","updates":{"name":"Eve"}}`)
	s.Publish("user.updated", `{"user_id":"stopped","updates":{"name":"Eve"}}`)

	late := func(key string) func() bool {
		return func() bool {
			return apptest.Value[bool](s, `SELECT coalesce(bool_or(tried_at > first_at + interval '4 s'), false)
				FROM failed_messages WHERE topic = 'user.updated' AND key = $1`, key)
		}
	}

	pgtest.Eventually(t, "it has been tried after its time", late("paused"))

	s.Publish("user.created", `{"user":{"id":"paused","name":"Ann","email":"ann@example.com"}}`)
	s.PublishMessage(event.Message{
		Topic: "user.created", Key: "stopped", Payload: []byte(`{"user":{"id":"stopped","name":"","email":"ann@example.com"}}`),
	})

	if _, err := s.Router.Resume(t.Context(), "account.create", by); err != nil {
		t.Fatal(err)
	}

	pgtest.Eventually(t, "the paused creation and the update are applied", func() bool {
		return apptest.Value[int](s, `SELECT count(*) FROM events WHERE stream = 'user-paused'`) == 2
	})
	pgtest.Eventually(t, "the other creation is stopped", func() bool {
		return apptest.Value[int](s, `SELECT count(*) FROM failed_messages WHERE topic = 'user.created' AND state = 'stopped'`) == 1
	})

	pgtest.Eventually(t, "the other update has been tried after its time", late("stopped"))
	pgtest.Eventually(t, "it says what it waits for", func() bool {
		list, err := s.Failed.WaitingKeys(t.Context(), failed.KeyFilter{Key: "stopped"}, 1)

		return err == nil && len(list) == 1 && strings.HasSuffix(list[0].Error, ": a failed message has this key")
	})

	if n := apptest.Value[int](s, `SELECT count(*) FROM user_misses`); n != 0 {
		t.Errorf("%d misses", n)
	}

	if _, err := s.Failed.Discard(t.Context(), failed.Filter{Topic: "user.created"}, by, failed.Pace{}); err != nil {
		t.Fatal(err)
	}

	pgtest.Eventually(t, "it is a miss", func() bool { return apptest.Value[int](s, `SELECT count(*) FROM user_misses`) == 1 })
}

// publishLater leaves user u's user.created message in the outbox for a while.
func publishLater(t *testing.T, s *apptest.Service, creation string, wait time.Duration) {
	t.Helper()

	_, err := s.Pool.Exec(t.Context(), `
		INSERT INTO outbox (shard, topic, key, message_id, correlation_id, payload, available_at)
		VALUES (0, 'user.created', 'u', $1, $1, $2, now() + $3::interval)`, event.NewID(), []byte(creation), wait)
	if err != nil {
		t.Fatal(err)
	}
}

// bothAreApplied waits until user u has been created and updated.
func bothAreApplied(t *testing.T, s *apptest.Service) {
	t.Helper()
	pgtest.Eventually(t, "both are applied", func() bool {
		if n := apptest.Value[int](s, `SELECT count(*) FROM user_misses`); n != 0 {
			t.Fatal("the update is a miss")
		}

		return apptest.Value[int](s, `SELECT count(*) FROM events WHERE stream = 'user-u'`) == 2
	})
}

// The clock is also stopped while the other message is in the outbox.
func TestAnUpdateAwaitsAUserWhoseCreationIsNotPublishedYet(t *testing.T) {
	t.Parallel()

	s := apptest.Start(t, func(c *config.Config) { c.Consumer.AwaitTimeout = time.Second })
	s.Publish("user.updated", `{"user_id":"u","updates":{"name":"Eve"}}`)

	publishLater(t, s, `{"user":{"id":"u","name":"Ann","email":"ann@example.com"}}`, 5*time.Second)
	bothAreApplied(t, s)
}

// Once the other message has left the outbox, it may stay in its broker for a while.
func TestTheTimeOfAnUpdateStartsAnewWhenTheCreationHasLeftTheOutbox(t *testing.T) {
	t.Parallel()

	s := apptest.Start(t, func(c *config.Config) { c.Consumer.AwaitTimeout = 2 * time.Second })
	creation := `{"user":{"id":"u","name":"Ann","email":"ann@example.com"}}`
	publishLater(t, s, creation, time.Hour)
	s.Publish("user.updated", `{"user_id":"u","updates":{"name":"Eve"}}`)
	pgtest.Eventually(t, "it awaits the message in the outbox", func() bool {
		return strings.Contains(firstWaiting(t, s, "u").Error, "in the outbox")
	})

	var left time.Time

	err := s.Pool.QueryRow(t.Context(), `WITH gone AS (DELETE FROM outbox) SELECT clock_timestamp()`).Scan(&left)
	if err != nil {
		t.Fatal(err)
	}

	pgtest.Eventually(t, "it has been tried again", func() bool {
		return apptest.Value[bool](s, `SELECT coalesce(bool_and(tried_at > $1), true) FROM failed_messages`, left)
	})
	s.Publish("user.created", creation)
	bothAreApplied(t, s)
}

// If the creation never comes, the update is a miss, even though a creation was in the
// outbox.
func TestAnUpdateIsAMissAfterTheCreationHasLeftTheOutboxForLong(t *testing.T) {
	t.Parallel()

	s := apptest.Start(t, func(c *config.Config) { c.Consumer.AwaitTimeout = 500 * time.Millisecond })

	publishLater(t, s, `{}`, time.Hour)
	s.Publish("user.updated", `{"user_id":"u","updates":{"name":"Eve"}}`)
	pgtest.Eventually(t, "it awaits the message in the outbox", func() bool {
		return strings.Contains(firstWaiting(t, s, "u").Error, "in the outbox")
	})

	if _, err := s.Pool.Exec(t.Context(), `DELETE FROM outbox`); err != nil {
		t.Fatal(err)
	}

	pgtest.Eventually(t, "it is a miss", func() bool { return apptest.Value[int](s, `SELECT count(*) FROM user_misses`) == 1 })
}

func TestUpdatesRightBehindTheirUsersOnKafka(t *testing.T) {
	t.Parallel()

	var cfg broker.Config

	s := apptest.Start(t, func(c *config.Config) {
		c.Broker.Kind = broker.Kafka
		c.Broker.Kafka.Brokers = strings.Split(brokertest.Address(t, brokertest.Kafka), ",")
		c.Broker.Kafka.Group, c.Broker.Kafka.Partitions = brokertest.Topic(), 8
		c.Broker.Kafka.Prefix = c.Broker.Kafka.Group + "."
		cfg = c.Broker
	})

	updatesRightBehind(t, s, func(topic string, messages []brokertest.Foreign) {
		brokertest.ProduceKafka(t, cfg, cfg.Kafka.Prefix+topic, messages...)
	})
}

func TestUpdatesRightBehindTheirUsersOnRabbitMQ(t *testing.T) {
	t.Parallel()

	var cfg broker.Config

	// On a shared server, another test's service would take some of the messages.
	server := brokertest.NewServer(t, "rabbitmq.sh")

	s := apptest.Start(t, func(c *config.Config) {
		c.Broker.Kind = broker.RabbitMQ
		c.Broker.RabbitMQ.URL = postgres.Secret("amqp://guest:guest@127.0.0.1:" + server.Port + "/")
		c.Broker.RabbitMQ.Lanes = 8
		cfg = c.Broker
	})

	updatesRightBehind(t, s, func(topic string, messages []brokertest.Foreign) {
		brokertest.ProduceRabbitMQ(t, cfg, topic, messages...)
	})
}

// updatesRightBehind publishes 300 users and, at the same time, an update to each, like a
// producer with two topics.
func updatesRightBehind(t *testing.T, s *apptest.Service, produce func(topic string, messages []brokertest.Foreign)) {
	t.Helper()

	const users = 300

	var created, updated []brokertest.Foreign

	for n := range users {
		id := fmt.Sprint("u", n)
		created = append(created, brokertest.Foreign{Key: id, Payload: fmt.Appendf(nil, `{"user":{"id":%q,"name":"A","email":"a@example.com"}}`, id)})
		updated = append(updated, brokertest.Foreign{Key: id, Payload: fmt.Appendf(nil, `{"user_id":%q,"updates":{"name":"B"}}`, id)})
	}

	var producing sync.WaitGroup

	producing.Go(func() { produce("user.created", created) })
	producing.Go(func() { produce("user.updated", updated) })
	producing.Wait()

	pgtest.Eventually(t, "all users are created", func() bool {
		return apptest.Value[int](s, `SELECT count(*) FROM events WHERE type = 'UserCreated'`) == users
	})

	started := time.Now()

	pgtest.Eventually(t, "all users are updated", func() bool {
		return apptest.Value[int](s, `SELECT count(*) FROM events WHERE type = 'UserNameUpdated'`) == users
	})
	t.Logf("all users were updated %s after the last was created", time.Since(started).Round(time.Millisecond))
	s.WaitUntilIdle()

	if n := apptest.Value[int](s, `SELECT (SELECT count(*) FROM failed_messages) + (SELECT count(*) FROM user_misses)`); n != 0 {
		t.Errorf("%d messages wait, are stopped or were missed", n)
	}
}
