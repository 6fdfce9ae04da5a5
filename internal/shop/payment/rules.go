package payment

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/millracehq/millrace/internal/engine/postgres"
)

// Action is the simulated gateway's answer to a request.
type Action string

// Actions. A request that is answered with timeout or error changes nothing; "charge
// then" and "refund then" carry out the request and lose the answer. A request that is
// answered with pending is carried out later, or fails later.
const (
	actionCapture           Action = "capture"
	actionDecline           Action = "decline"
	actionTimeout           Action = "timeout"
	actionError             Action = "error"
	actionChargeThenTimeout Action = "charge_then_timeout"
	actionChargeThenError   Action = "charge_then_error"
	actionPending           Action = "pending"
	actionPendingDecline    Action = "pending_then_decline"
	actionRefundThenTimeout Action = "refund_then_timeout"
	actionRefundPending     Action = "refund_pending"
	actionRefundPendingFail Action = "refund_pending_then_fail"
)

// actions lists the answers to charges, and refundActions the answers to refunds.
var (
	actions = []Action{
		actionCapture, actionDecline, actionTimeout, actionError, actionChargeThenTimeout, actionChargeThenError, actionPending, actionPendingDecline,
	}
	refundActions = []Action{actionRefundThenTimeout, actionRefundPending, actionRefundPendingFail}
)

// Rule defines how the simulated gateway answers requests about some orders.
type Rule struct {
	// Order is an order id, or an id prefix followed by *.
	Order string `koanf:"order"`
	// Action is the answer to a request.
	Action Action `koanf:"action"`
	// Times is the number of requests per order that get this answer. Capture and
	// decline apply to all. Defaults to 1.
	Times int `koanf:"times"`
}

func (r Rule) validate() error {
	known := slices.Concat(actions, refundActions)

	switch {
	case r.Order == "":
		return fmt.Errorf("payment.simulated.rules: order is missing in %+v, expected an id, or an id prefix followed by *", r)
	case !slices.Contains(known, r.Action):
		return fmt.Errorf("payment.simulated.rules: action is %q for %s, expected one of %s", r.Action, r.Order,
			strings.Join(postgres.Column(known, func(a Action) string { return string(a) }), ", "))
	case r.Times < 0:
		return fmt.Errorf("payment.simulated.rules: times is %d for %s, expected 1 or more", r.Times, r.Order)
	default:
		return nil
	}
}

func (r Rule) matches(orderID string) bool {
	prefix, star := strings.CutSuffix(r.Order, "*")

	return orderID == r.Order || star && strings.HasPrefix(orderID, prefix)
}

// rate is the fraction of requests that an action applies to.
type rate struct {
	action   Action
	fraction float64
}

func (c SimulatedConfig) rates() []rate {
	return []rate{
		{actionDecline, c.DeclineRate}, {actionTimeout, c.TimeoutRate}, {actionError, c.ErrorRate},
		{actionChargeThenTimeout, c.ChargeThenTimeoutRate}, {actionChargeThenError, c.ChargeThenErrorRate},
	}
}

// plan returns the answer to a request, and the number of the order's requests that get
// it. The first matching rule decides; if none matches, chance does.
func (c SimulatedConfig) plan(orderID string, refund bool) (action Action, times int) {
	for _, r := range c.Rules {
		if r.matches(orderID) && slices.Contains(refundActions, r.Action) == refund {
			return r.Action, max(r.Times, 1)
		}
	}

	if refund {
		return actionCapture, 0
	}

	chance := rand.Float64()

	for _, rate := range c.rates() {
		if chance -= rate.fraction; chance < 0 {
			return rate.action, math.MaxInt32 // however many requests there have been
		}
	}

	return actionCapture, 0
}
