package app_test

import (
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stripe/stripe-go/v82/webhook"

	"github.com/millracehq/millrace/internal/config"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/shop/payment"
	"github.com/millracehq/millrace/internal/test/apptest"
	"github.com/millracehq/millrace/internal/test/paymenttest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

func payingByStripe(url string) func(*config.Config) {
	return func(c *config.Config) {
		c.Payment.Gateway = "stripe"
		c.Payment.Stripe.SecretKey, c.Payment.Stripe.URL = "sk_test_hunter2", url
		c.Consumer.ParkInterval, c.Consumer.ParkMaxInterval, c.Consumer.ParkAttempts = 10*time.Millisecond, time.Second, 1000
		c.Outbox.PollInterval = 20 * time.Millisecond
	}
}

func ordered(id string) string {
	return fmt.Sprintf(`{"order": {"id": %q, "product_id": "product_1", "quantity": 1, "total_amount": 99.99}}`, id)
}

func TestOrdersArePaidOnceDespiteProviderFailures(t *testing.T) {
	t.Parallel()

	const orders = 21

	server := paymenttest.NewServer(t)

	// Every third request fails, cycling through the faults.
	faults := []paymenttest.Fault{
		paymenttest.Lost, paymenttest.AfterLost, paymenttest.AfterError, paymenttest.Error, paymenttest.InUse, paymenttest.AfterGarbled,
	}

	var n atomic.Int64

	server.Plan(func(string) paymenttest.Fault {
		if i := n.Add(1); i%3 == 0 {
			return faults[int(i/3)%len(faults)]
		}

		return paymenttest.None
	})

	s := apptest.New(t, pgtest.URL(t), payingByStripe(server.URL))
	s.Seed()
	s.Run()

	for i := range orders {
		id := fmt.Sprintf("order-%d", i)
		if i%3 == 0 {
			server.Decline(id, "insufficient_funds")
		}

		s.Publish("orders.created", ordered(id))
	}

	for i := range orders {
		id, status, captures := fmt.Sprintf("order-%d", i), "completed", 1
		if i%3 == 0 {
			status, captures = "payment_failed", 0
		}

		s.WaitForOrder(id, status)

		if n, _, _ := server.Captured(id); n != captures {
			t.Errorf("%s is %s and was captured %d times", id, status, n)
		}
	}

	if stopped := apptest.Value[int](s, `SELECT count(*) FROM failed_messages`); stopped != 0 {
		t.Errorf("%d messages failed", stopped)
	}
}

func TestAChargeWithoutAResponseIsPaidOnce(t *testing.T) {
	t.Parallel()

	s := apptest.New(t, pgtest.URL(t), func(c *config.Config) {
		c.Payment.Simulated.Rules = []payment.Rule{{Order: "slow-*", Action: "charge_then_timeout", Times: 2}, {Order: "declined-*", Action: "decline"}}
		c.Payment.Simulated.Timeout = time.Millisecond
		c.Consumer.ParkInterval, c.Outbox.PollInterval = 10*time.Millisecond, 20*time.Millisecond
	})
	s.Seed()
	s.Run()
	s.Publish("orders.created", ordered("slow-1"))
	s.Publish("orders.created", ordered("declined-1"))
	s.WaitForOrder("slow-1", "completed")
	s.WaitForOrder("declined-1", "payment_failed")

	if n := apptest.Value[int](s, `SELECT requests FROM gateway_ledger WHERE order_id = 'slow-1' AND transaction_id IS NOT NULL`); n != 3 {
		t.Errorf("got %d requests, expected 3", n)
	}

	if reserved := apptest.Value[int](s, `SELECT reserved::int FROM stock WHERE product_id = 'product_1'`); reserved != 0 {
		t.Errorf("%d are still reserved", reserved)
	}
}

func TestWebhooksRequireASecret(t *testing.T) {
	t.Parallel()

	body := `{"id": "evt_1", "object": "event", "type": "payment_intent.payment_failed", "data": {"object": {
		"id": "pi_1", "amount": 9999, "currency": "usd", "metadata": {"source": "millrace", "order_id": "order", "attempt": "1"}}}}`
	signed := webhook.GenerateTestSignedPayload(&webhook.UnsignedPayload{Payload: []byte(body), Secret: "whsec_test"})

	for secret, want := range map[string]int{"": http.StatusNotFound, "whsec_test": http.StatusOK} {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}

		address := listener.Addr().String()
		_ = listener.Close()

		s := apptest.Start(t, func(c *config.Config) {
			c.HTTP.Addr = address
			c.Payment.Stripe.WebhookSecret = postgres.Secret(secret)
		})
		s.ExpectFailures() // there is no such order

		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+address+"/webhooks/stripe", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}

		request.Header.Set("Stripe-Signature", signed.Header)

		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}

		if _ = response.Body.Close(); response.StatusCode != want {
			t.Errorf("with secret %q: got %s", secret, response.Status)
		}

		if want == http.StatusOK {
			if told := s.Messages("payments.reported", 1)[0].Fields(); told["order_id"] != "order" || told["outcome"] != "declined" {
				t.Errorf("got %v", told)
			}
		}

		s.Stop()
	}
}
