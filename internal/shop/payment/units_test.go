package payment

import (
	"strings"
	"testing"

	"github.com/millracehq/millrace/internal/shop/money"
)

func TestMinorUnits(t *testing.T) {
	t.Parallel()

	for _, c := range []struct {
		amount, currency string
		units            int64
		wrong            string
	}{
		{"99.99", "USD", 9999, ""},
		{"0.01", "EUR", 1, ""},
		{"500", "JPY", 500, ""},
		{"500.00", "JPY", 500, ""},
		{"500.5", "JPY", 0, "expected a multiple of 1"},
		{"1.005", "USD", 0, "expected a multiple of 0.01"},
		{"5.120", "KWD", 5120, ""},
		{"5.124", "KWD", 0, "expected a multiple of 0.01"},
		// No decimals in ISO 4217, hundredths at Stripe.
		{"5", "ISK", 500, ""},
		{"5", "UGX", 500, ""},
		{"5.5", "UGX", 0, "expected a multiple of 1"},
		// Printed without decimals, hundredths at Stripe: CLDR's tables would charge
		// a hundredth of the amount.
		{"150000", "IDR", 15000000, ""},
		{"150000", "COP", 15000000, ""},
		{"100", "ALL", 10000, ""},
		{"100", "HUF", 10000, ""},
		{"999999999999999999", "KWD", 0, "more than can be charged"},
		{"-1", "USD", -100, ""},
	} {
		units, err := minorUnits(money.MustParse(c.amount), c.currency)

		switch {
		case c.wrong != "":
			if err == nil || !strings.HasPrefix(err.Error(), "amount: is "+c.amount) || !strings.Contains(err.Error(), c.wrong) {
				t.Errorf("%s %s: got %d, %v", c.amount, c.currency, units, err)
			}
		case err != nil || units != c.units:
			t.Errorf("%s %s: got %d, %v, expected %d", c.amount, c.currency, units, err, c.units)
		default:
			if back, code := amountOf(units, strings.ToLower(c.currency)); code != c.currency || !back.Equal(money.MustParse(c.amount)) {
				t.Errorf("%s %s: converted back to %s %s", c.amount, c.currency, back, code)
			}
		}
	}
}
