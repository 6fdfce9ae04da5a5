package app_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/millracehq/millrace/internal/config"
	"github.com/millracehq/millrace/internal/engine/activity"
	"github.com/millracehq/millrace/internal/engine/operate"
	"github.com/millracehq/millrace/internal/test/apptest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// Orders that are placed while fulfilment.charge is paused do not expire, even across
// an outage, and are charged afterwards. Until then, customers can cancel them.
func TestOrdersDoNotExpireWhileTheirPaymentIsPaused(t *testing.T) {
	t.Parallel()

	const orders = 5

	by := activity.Actor{Who: "test", Why: "to see"}
	brief := func(c *config.Config) { c.Fulfilment.PaymentTimeout = time.Second }
	url := pgtest.URL(t)

	s := apptest.New(t, url, brief)
	s.Run()
	s.Seed()

	if _, err := s.Router.Pause(t.Context(), "fulfilment.charge", 0, by); err != nil {
		t.Fatal(err)
	}

	pgtest.Eventually(t, "the service knows of the pause", func() bool { return s.Router.Stalled("payments.requested") != "" })

	for n := range orders {
		s.Publish("orders.created", fmt.Sprintf(`{"order":{"id":"o%d","product_id":"product_1","quantity":1,"total_amount":5}}`, n))
	}

	waiting := func(s *apptest.Service) int {
		return apptest.Value[int](s, `SELECT count(*) FROM orders WHERE status = 'inventory_reserved'`)
	}

	pgtest.Eventually(t, "they are waiting for payment", func() bool { return waiting(s) == orders })
	pgtest.Eventually(t, "three times their time has passed", func() bool {
		return apptest.Value[bool](s, `SELECT min(created_at) < now() - interval '3 s' AND (SELECT max(ticked_at) > now() - interval '1 s' FROM expiry_cursor) FROM orders`)
	})

	s.Publish("orders.cancel.requested", `{"order_id":"o0"}`)
	s.WaitForOrder("o0", "cancelled")

	if n := waiting(s); n != orders-1 {
		t.Errorf("%d orders are waiting for payment, expected %d", n, orders-1)
	}

	s.Stop()

	later := apptest.New(t, url, brief)
	pgtest.Eventually(t, "no service has run for longer than their time", func() bool {
		return apptest.Value[bool](later, `SELECT ticked_at < now() - interval '2 s' FROM expiry_cursor`)
	})

	if _, err := later.Router.Resume(t.Context(), "fulfilment.charge", by); err != nil {
		t.Fatal(err)
	}

	later.Run()

	for n := 1; n < orders; n++ {
		later.WaitForOrder(fmt.Sprint("o", n), "completed")
	}
}

// pause asks the API to pause a consumer.
func pause(t *testing.T, s *apptest.Service, consumer, body string) (status int, outcome operate.PauseOutcome, text string) {
	t.Helper()

	status, text = fetch(t, s, http.MethodPost, "/api/v1/consumers/"+consumer+"/pause", body, http.Header{"Content-Type": {"application/json"}})
	_ = json.Unmarshal([]byte(text), &outcome) // a refusal has no outcome

	return status, outcome, text
}

func TestThePauseOfAConsumerSaysWhatItAffects(t *testing.T) {
	t.Parallel()

	s := apptest.Start(t)
	s.Seed()

	const clock = " payment; the payment timeout (15m0s) is suspended, also for new orders"

	status, outcome, text := pause(t, s, "fulfilment.charge", `{"dry_run":true,"for":"1h"}`)
	if got := strings.Join(outcome.Effects, "|"); status != 200 || got != "messages on payments.requested stay in the outbox; 0 are there now|0 orders are waiting for"+clock || outcome.Changed || !outcome.DryRun || outcome.Pause != nil {
		t.Errorf("%d %s", status, text)
	}

	status, outcome, text = pause(t, s, "fulfilment.charge", `{"for":"1h","why":"the provider is down"}`)
	if status != 200 || !outcome.Changed || outcome.Pause == nil || outcome.Pause.Until == nil || outcome.Pause.Until.Sub(outcome.Pause.At).Round(time.Minute) != time.Hour {
		t.Errorf("%d %s", status, text)
	}

	pgtest.Eventually(t, "the service knows of the pause", func() bool { return s.Router.Stalled("payments.requested") != "" })
	s.Publish("orders.created", `{"order":{"id":"o","product_id":"product_1","quantity":1,"total_amount":5}}`)
	s.WaitForOrder("o", "inventory_reserved")

	if _, outcome, text = pause(t, s, "fulfilment.charge", `{}`); strings.Join(outcome.Effects, "|") != "messages on payments.requested stay in the outbox; 1 is there now|1 order is waiting for"+clock || !outcome.Changed || outcome.Pause.Until != nil {
		t.Error(text)
	}

	if _, outcome, text = pause(t, s, "account.create", `{}`); strings.Join(outcome.Effects, "|") != "messages on user.created stay in the outbox; 0 are there now" {
		t.Error(text)
	}
}

func TestADurationThatNoPauseCanHaveIsRefused(t *testing.T) {
	t.Parallel()

	s := apptest.Start(t)

	for body, says := range map[string]string{
		`{"for":"soon"}`:     `for: is \"soon\", expected a duration such as 30m or 1h`,
		`{"for":"-1h"}`:      `for: is -1h0m0s, expected 1s to 8760h0m0s`,
		`{"for":"2562047h"}`: `for: is 2562047h0m0s, expected 1s to 8760h0m0s`,
	} {
		if status, _, text := pause(t, s, "fulfilment.charge", body); status != http.StatusUnprocessableEntity || !strings.Contains(text, says) {
			t.Errorf("%s: %d %s", body, status, text)
		}
	}
}
