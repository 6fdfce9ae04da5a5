package app_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/millracehq/millrace/internal/config"
	"github.com/millracehq/millrace/internal/shop/payment"
	"github.com/millracehq/millrace/internal/test/apptest"
	"github.com/millracehq/millrace/internal/test/paymenttest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// waiting returns the topics of the waiting messages with their reason and attempts.
func waiting(s *apptest.Service) []string {
	return apptest.Value[[]string](s, `
		SELECT coalesce(array_agg(topic || ' ' || reason || ' ' || attempts ORDER BY topic), '{}') FROM failed_messages WHERE state = 'waiting'`)
}

func providerReport(order, outcome, more string) string {
	return fmt.Sprintf(`{"order_id": %q, "outcome": %q, "amount": 99.99, "currency": "USD" %s}`, order, outcome, more)
}

func transaction(s *apptest.Service, order string) string {
	return apptest.Value[string](s, `SELECT intent_id FROM stripe_intents WHERE order_id = $1`, order)
}

// told returns the topics that other systems listen to and on which messages about an
// order were published.
func told(s *apptest.Service, order string) (topics []string) {
	for _, topic := range []string{
		"orders.completed", "orders.rejected", "orders.expired", "orders.cancelled", "payments.refunded", "payments.refund.failed",
	} {
		for _, m := range s.Messages(topic, 0) {
			if m.Fields()["order_id"] == order {
				topics = append(topics, topic)
			}
		}
	}

	return topics
}

// startWithPendingPayment runs a service in which the payment of the order "slow" is
// pending at the provider.
func startWithPendingPayment(t *testing.T) (*apptest.Service, *paymenttest.Server) {
	t.Helper()

	server := paymenttest.NewServer(t)
	server.Hold("slow", "processing")

	s := apptest.New(t, pgtest.URL(t), payingByStripe(server.URL), func(c *config.Config) { c.Consumer.ParkAttempts = 1 })
	s.ExpectFailures()
	s.Seed()
	s.Run()
	s.Publish("orders.created", ordered("slow"))
	s.WaitForOrder("slow", "inventory_reserved")
	s.Publish("orders.expiry.due", `{"order_id": "slow"}`) // it does not expire while its payment is pending
	pgtest.Eventually(t, "its charge waits for the outcome, and it gets its time again", func() bool {
		return slices.Equal(waiting(s), []string{"payments.requested pending 0"}) &&
			apptest.Value[int](s, `SELECT count(*) FROM outbox WHERE topic = 'orders.expiry.due' AND available_at IS NOT NULL`) == 1
	})

	return s, server
}

func TestAPendingPaymentHoldsUpNobody(t *testing.T) {
	t.Parallel()

	const others = 20

	s, _ := startWithPendingPayment(t)

	for n := range others {
		s.Publish("orders.created", ordered(fmt.Sprint("order-", n)))
	}

	for n := range others {
		s.WaitForOrder(fmt.Sprint("order-", n), "completed")
	}

	s.WaitForOrder("slow", "inventory_reserved")

	if got := told(s, "slow"); got != nil {
		t.Errorf("others were notified: %v", got)
	}

	if !s.Dependencies.Get(payment.Dependency).State().Up {
		t.Errorf("the gateway is not available: %+v", s.Dependencies.States())
	}
}

func TestAPendingPaymentEndsAsTheProviderDecides(t *testing.T) {
	t.Parallel()

	for _, c := range []struct {
		captured bool
		status   string
		report   func(transaction string) string
	}{
		{true, "completed", func(transaction string) string {
			return providerReport("slow", "captured", fmt.Sprintf(`, "transaction_id": %q`, transaction))
		}},
		{false, "payment_failed", func(string) string { return providerReport("slow", "declined", `, "reason": "no money"`) }},
	} {
		t.Run(c.status, func(t *testing.T) {
			t.Parallel()

			s, server := startWithPendingPayment(t)
			server.Settle("slow", c.captured)
			s.Publish("payments.reported", c.report(transaction(s, "slow")))
			s.WaitForOrder("slow", c.status)
			pgtest.Eventually(t, "no message waits", func() bool { return len(waiting(s)) == 0 })
			s.WaitForOrder("slow", c.status)

			if got := told(s, "slow"); len(got) != 1 {
				t.Errorf("others were notified: %v", got)
			}
		})
	}
}

// startWithPendingRefund runs a service in which an order was cancelled while its payment
// was pending. The payment was captured afterwards, and its refund is pending.
func startWithPendingRefund(t *testing.T) (*apptest.Service, *paymenttest.Server) {
	t.Helper()

	server := paymenttest.NewServer(t)
	server.Hold("order", "processing")
	server.HoldRefunds("order")

	s := apptest.New(t, pgtest.URL(t), payingByStripe(server.URL))
	s.ExpectFailures()
	s.Seed()
	s.Run()
	s.Publish("orders.created", ordered("order"))
	pgtest.Eventually(t, "the charge is pending", func() bool { return slices.Equal(waiting(s), []string{"payments.requested pending 0"}) })
	s.Publish("orders.cancel.requested", `{"order_id": "order", "reason": "changed my mind"}`)
	s.WaitForOrder("order", "cancelled") // it does not wait for the charge
	server.Settle("order", true)
	s.Publish("payments.reported", reportOfCapture(s, "captured", ""))
	pgtest.Eventually(t, "the refund is pending", func() bool { return slices.Contains(waiting(s), "payments.refund.requested pending 0") })

	return s, server
}

// reportOfCapture is the provider's report about the captured payment for "order".
func reportOfCapture(s *apptest.Service, outcome, more string) string {
	return providerReport("order", outcome, fmt.Sprintf(`, "transaction_id": %q`, transaction(s, "order"))+more)
}

// succeed makes the pending refund succeed and returns the refund's id.
func succeed(t *testing.T, s *apptest.Service, server *paymenttest.Server) (refund string) {
	t.Helper()

	refund = server.SettleRefunds("order", "succeeded", "")[0]
	s.Publish("payments.reported", reportOfCapture(s, "refunded", fmt.Sprintf(`, "refund_id": %q`, refund)))
	s.Messages("payments.refunded", 1)
	pgtest.Eventually(t, "no message waits", func() bool { return len(waiting(s)) == 0 })

	return refund
}

func TestARefundIsToldWhenItHasSucceeded(t *testing.T) {
	t.Parallel()

	s, server := startWithPendingRefund(t)

	if got := told(s, "order"); !slices.Equal(got, []string{"orders.cancelled"}) {
		t.Errorf("others were notified: %v", got)
	}

	succeed(t, s, server)
}

// A refund fails days after it succeeded. Other systems are notified, and a person sees
// the failure and refunds the payment by other means.
func TestARefundThatFailsLaterIsToldAndReachesAPerson(t *testing.T) {
	t.Parallel()

	s, server := startWithPendingRefund(t)
	refund := succeed(t, s, server)
	server.SettleRefunds("order", "failed", "lost_or_stolen_card")

	failed := reportOfCapture(s, "refund_failed", fmt.Sprintf(`, "refund_id": %q, "reason": "lost card"`, refund))
	s.Publish("payments.reported", failed)
	s.Publish("payments.reported", failed) // the provider reports it in events of two types
	pgtest.Eventually(t, "a request is stopped", func() bool {
		return apptest.Value[int](s, `SELECT count(*) FROM failed_messages WHERE state = 'stopped' AND topic = 'payments.refund.requested'
			AND error LIKE '%the refund re_000000 is failed: lost_or_stolen_card%'`) == 1
	})
	s.WaitUntilIdle()

	if n := len(s.Messages("payments.refund.failed", 1)); n != 1 || server.Requests(paymenttest.OpRefund) > 2 {
		t.Errorf("others were notified %d times, and the provider was asked for %d refunds", n, server.Requests(paymenttest.OpRefund))
	}

	statement, err := payment.State(t.Context(), s.Pool, s.Gateway, "order")
	if err != nil || len(statement.Recorded) != 1 || len(statement.Differences) != 0 ||
		statement.Recorded[0].Status != "captured" || statement.Recorded[0].RefundFailure != "re_000000: lost card" {
		t.Errorf("got %+v, %v", statement, err)
	}

	s.Publish("payments.reported", reportOfCapture(s, "refunded", `, "refund_id": "re_by_hand"`))
	s.Messages("payments.refunded", 2)

	details, err := s.Orders.Show(t.Context(), "order")
	if err != nil || len(details.Captures) != 1 || details.Captures[0].RefundID != "re_by_hand" {
		t.Errorf("got %+v, %v", details.Captures, err)
	}
}

func TestADisputeReachesAPerson(t *testing.T) {
	t.Parallel()

	server := paymenttest.NewServer(t)
	s := apptest.New(t, pgtest.URL(t), payingByStripe(server.URL))
	s.ExpectFailures()
	s.Seed()
	s.Run()
	s.Publish("orders.created", ordered("order"))
	s.WaitForOrder("order", "completed")
	s.Publish("payments.reported", providerReport("order", "disputed", fmt.Sprintf(`, "transaction_id": %q, "reason": "fraudulent (dp_1)"`, transaction(s, "order"))))
	pgtest.Eventually(t, "the report is stopped", func() bool {
		return apptest.Value[int](s, `SELECT count(*) FROM failed_messages WHERE state = 'stopped' AND error LIKE '%is disputed: fraudulent (dp_1)%'`) == 1
	})
}
