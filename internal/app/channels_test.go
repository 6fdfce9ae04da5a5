package app_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millracehq/millrace/internal/config"
	"github.com/millracehq/millrace/internal/engine/activity"
	"github.com/millracehq/millrace/internal/engine/breaker"
	"github.com/millracehq/millrace/internal/engine/broker"
	"github.com/millracehq/millrace/internal/engine/consumer"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/engine/scrub"
	"github.com/millracehq/millrace/internal/shop/notification"
	"github.com/millracehq/millrace/internal/test/apptest"
	"github.com/millracehq/millrace/internal/test/brokertest"
	"github.com/millracehq/millrace/internal/test/mailtest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// onBroker runs a service on topics of its own, with one partition.
func onBroker(t *testing.T, kind string) func(*config.Config) {
	t.Helper()

	return func(c *config.Config) {
		c.Broker.Kind = kind

		switch kind {
		case broker.Kafka:
			c.Broker.Kafka.Brokers = []string{brokertest.Address(t, brokertest.Kafka)}
			c.Broker.Kafka.Group, c.Broker.Kafka.Partitions = brokertest.Topic(), 1
			c.Broker.Kafka.Prefix = c.Broker.Kafka.Group + "."
		case broker.RabbitMQ: // queues have no prefix
			c.Broker.RabbitMQ.URL = postgres.Secret("amqp://guest:guest@127.0.0.1:" + brokertest.NewServer(t, "rabbitmq.sh").Port + "/")
			c.Broker.RabbitMQ.Lanes = 8
		}
	}
}

// webhooks receives webhooks.
type webhooks struct {
	url string

	mu       sync.Mutex
	statuses []int // of the next responses; after those, 200
	bodies   map[string][]string
}

func newWebhooks(t *testing.T, statuses ...int) *webhooks {
	t.Helper()

	r := &webhooks{statuses: statuses, bodies: map[string][]string{}}
	server := httptest.NewServer(r)
	r.url = server.URL
	t.Cleanup(server.Close)

	return r
}

// ServeHTTP implements http.Handler.
func (r *webhooks) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	body, _ := io.ReadAll(request.Body)

	r.mu.Lock()
	defer r.mu.Unlock()

	id := request.Header.Get("Webhook-Id")
	r.bodies[id] = append(r.bodies[id], string(body))

	if len(r.statuses) > 0 {
		w.Header().Set("Location", "/elsewhere")
		w.WriteHeader(r.statuses[0])
		r.statuses = r.statuses[1:]
	}
}

// received returns the number of webhooks and of requests, and fails the test if
// requests for the same webhook had different bodies.
func (r *webhooks) received(t *testing.T) (ids, requests int) {
	t.Helper()

	r.mu.Lock()
	defer r.mu.Unlock()

	for id, bodies := range r.bodies {
		requests += len(bodies)

		if len(slices.Compact(slices.Clone(bodies))) != 1 {
			t.Errorf("%s had the bodies %q", id, bodies)
		}
	}

	return len(r.bodies), requests
}

func (r *webhooks) configure(c *config.Config) {
	c.Notification.Webhook.URL, c.Notification.Webhook.AllowNetworks = scrub.URL(r.url), []string{"127.0.0.0/8"}
	c.Notification.Webhook.Secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	c.Outbox.PollInterval = 20 * time.Millisecond
	c.Consumer.PerTopic = []consumer.TopicConfig{{
		Topic: notification.TopicWebhook, ParkInterval: new(10 * time.Millisecond), ParkMaxInterval: new(20 * time.Millisecond),
	}}
}

func waitsFor(state consumer.State, dependency string) bool {
	return slices.ContainsFunc(state.Waits, func(d breaker.State) bool { return d.Name == dependency })
}

func notify(channel notification.Channel, n int) string {
	return fmt.Sprintf(`{"user_id": "user_1", "content": "message %d", "channel": %q}`, n, channel)
}

func TestADeadMailServerDelaysNoOtherChannel(t *testing.T) {
	t.Parallel()

	const each = 30

	for _, kind := range []string{broker.Embedded, broker.Kafka, broker.RabbitMQ} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()

			mail, receiver := mailtest.NewServer(t), newWebhooks(t)
			mail.RefuseSender(421, [3]int{4, 3, 2}, "shutting down")

			s := apptest.Start(t, mailing(mail, 1000), onBroker(t, kind), receiver.configure)
			sent := func(channel notification.Channel) int {
				return apptest.Value[int](s, `SELECT count(*) FROM notifications WHERE channel = $1 AND status = 'sent'`, string(channel))
			}

			s.Publish("user.created", guide(t, "user.created"))
			pgtest.Eventually(t, "the welcome waits for the mail server", func() bool {
				return slices.ContainsFunc(s.Router.States(), func(state consumer.State) bool {
					return state.Consumer == "notification.email" && waitsFor(state, notification.MailServer)
				})
			})

			started := time.Now()

			for n := range each { // for one user, e-mails first
				for _, channel := range []notification.Channel{notification.Email, notification.Webhook, notification.Log} {
					s.Publish("notifications", notify(channel, n))
				}
			}

			pgtest.Eventually(t, "the other channels have sent all", func() bool {
				return sent(notification.Webhook) == each && sent(notification.Log) == each
			})
			t.Logf("%d webhooks and %d lines took %s without a mail server", each, each, time.Since(started))

			if n := sent(notification.Email); n != 0 {
				t.Errorf("%d e-mails were sent", n)
			}

			mail.RefuseSender(0, [3]int{}, "")
			pgtest.Eventually(t, "all e-mails are sent", func() bool { return sent(notification.Email) == each+1 })

			for n, text := range mail.Received()[1:] {
				if !strings.Contains(text, fmt.Sprintf("Subject: message %d\r", n)) {
					t.Errorf("e-mail %d is %s", n, text)
				}
			}
		})
	}
}

func TestAWebhookIsPostedUntilItsReceiverAccepts(t *testing.T) {
	t.Parallel()

	statuses := []int{
		http.StatusNotFound, http.StatusForbidden, http.StatusUnauthorized, http.StatusConflict, http.StatusTooEarly,
		http.StatusFound, http.StatusBadRequest, http.StatusInternalServerError, http.StatusBadGateway, http.StatusTooManyRequests,
	}
	receiver := newWebhooks(t, statuses...)
	s := apptest.Start(t, receiver.configure)
	s.ExpectFailures() // it is parked

	s.Publish("notifications", notify(notification.Webhook, 1))
	s.Publish("notifications", notify(notification.Webhook, 2)) // waits for the first
	pgtest.Eventually(t, "both are accepted", func() bool {
		return apptest.Value[int](s, `SELECT count(*) FROM notifications WHERE status = 'sent'`) == 2
	})
	s.WaitUntilIdle()

	if ids, requests := receiver.received(t); ids != 2 || requests != len(statuses)+2 {
		t.Errorf("%d webhooks arrived with %d requests", ids, requests)
	}

	if n := apptest.Value[int](s, `SELECT count(*) FROM failed_messages`); n != 0 {
		t.Errorf("%d messages failed", n)
	}
}

func TestAReceiverThatIsGoneGetsNoMoreWebhooks(t *testing.T) {
	t.Parallel()

	receiver := newWebhooks(t, http.StatusGone)
	s := apptest.Start(t, receiver.configure)
	s.ExpectFailures()

	s.Publish("notifications", notify(notification.Webhook, 1))
	pgtest.Eventually(t, "it is stopped", func() bool {
		return apptest.Value[int](s, `SELECT count(*) FROM failed_messages WHERE state = 'stopped' AND error LIKE '%410 Gone%'`) == 1
	})
	pgtest.Eventually(t, "the consumer is paused", func() bool {
		return slices.ContainsFunc(s.Router.States(), func(state consumer.State) bool {
			return state.Consumer == "notification.webhook" && state.Pause != nil && state.Pause.Who == activity.Service
		})
	})

	s.Publish("notifications", notify(notification.Webhook, 2))
	s.Publish("notifications", notify(notification.Log, 3))
	pgtest.Eventually(t, "another channel sends", func() bool {
		return apptest.Value[int](s, `SELECT count(*) FROM notifications WHERE channel = 'log'`) == 1
	})

	if _, requests := receiver.received(t); requests != 1 {
		t.Errorf("%d requests, expected one", requests)
	}

	if _, err := s.Router.Resume(t.Context(), "notification.webhook", activity.Actor{Who: "op", Why: "a new URL"}); err != nil {
		t.Fatal(err)
	}

	pgtest.Eventually(t, "the second is posted", func() bool {
		return apptest.Value[int](s, `SELECT count(*) FROM notifications WHERE channel = 'webhook'`) == 1
	})
}

// A receiver that does not answer holds up only its own channel's messages: after a few
// attempts, the channel's consumer waits, and the relay's lanes stay free.
func TestAHangingReceiverDelaysNoOtherChannel(t *testing.T) {
	t.Parallel()

	const each = 300 // more than the relay has lanes

	hanging := make(chan struct{})
	receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-hanging:
		case <-r.Context().Done():
		}
	}))
	t.Cleanup(receiver.Close)
	t.Cleanup(func() { close(hanging) })

	s := apptest.Start(t, newWebhooks(t).configure, func(c *config.Config) {
		c.Notification.Webhook.URL = scrub.URL(receiver.URL)
		c.Consumer.HandlerTimeout = 500 * time.Millisecond
	})
	s.ExpectFailures()

	for n := range each {
		s.Publish("notifications", strings.Replace(notify(notification.Webhook, n), "user_1", fmt.Sprint("user_", n), 1))
	}

	pgtest.Eventually(t, "webhooks wait for the receiver", func() bool {
		return slices.ContainsFunc(s.Router.States(), func(state consumer.State) bool {
			return state.Consumer == "notification.webhook" && waitsFor(state, notification.WebhookReceiver)
		})
	})

	for n := range each {
		s.Publish("notifications", notify(notification.Log, n))
	}

	pgtest.Eventually(t, "another channel sends", func() bool {
		return apptest.Value[int](s, `SELECT count(*) FROM notifications WHERE channel = 'log'`) == each
	})

	if n := apptest.Value[int](s, `SELECT count(*) FROM failed_messages WHERE state = 'stopped'`); n != 0 {
		t.Errorf("%d messages are stopped", n)
	}
}
