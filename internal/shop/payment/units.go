package payment

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/shopspring/decimal"

	"github.com/millracehq/millrace/internal/shop/money"
)

// Currencies that Stripe does not count in hundredths, from its documentation
// (docs.stripe.com/currencies, 2026). Do not use money.Places here: Stripe still
// counts ISK and UGX in hundredths, although ISO 4217 has no decimals for them, and
// MGA in whole units, although it has fifths.
var (
	wholeUnits = strings.Fields("BIF CLP DJF GNF JPY KMF KRW MGA PYG RWF VND VUV XAF XOF XPF")
	// thousandths must end in 0, so that every bank accepts them.
	thousandths = strings.Fields("BHD JOD KWD OMR TND")
	// onceHundredths must end in 00.
	onceHundredths = strings.Fields("ISK UGX")
)

// digits returns the number of decimal places in Stripe's unit for a currency.
func digits(currency string) int32 {
	switch {
	case slices.Contains(wholeUnits, currency):
		return 0
	case slices.Contains(thousandths, currency):
		return 3
	default:
		return 2
	}
}

// minorUnits returns an amount in Stripe's unit, or an error if the currency
// cannot express it.
func minorUnits(amount money.Amount, currency string) (int64, error) {
	step := int64(1)

	switch {
	case slices.Contains(thousandths, currency):
		step = 10
	case slices.Contains(onceHundredths, currency):
		step = 100
	}

	units := amount.Shift(digits(currency))

	if !units.Mod(decimal.NewFromInt(step)).IsZero() {
		return 0, fmt.Errorf("amount: is %s, which cannot be charged in %s: expected a multiple of %s",
			amount, currency, decimal.New(step, -digits(currency)))
	}

	if units.Abs().GreaterThan(decimal.NewFromInt(math.MaxInt64)) {
		return 0, fmt.Errorf("amount: is %s, which is more than can be charged", amount)
	}

	return units.IntPart(), nil
}

// amountOf returns an amount in Stripe's unit as an amount and a currency.
// Stripe's currency codes are in lower case.
func amountOf(units int64, code string) (money.Amount, string) {
	currency := strings.ToUpper(code)

	return money.Amount{Decimal: decimal.New(units, -digits(currency))}, currency
}
