package report

import (
	"fmt"
	"image/color"
	"math"
	"os"
	"path/filepath"
	"strings"
	"time"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

var (
	ourColor   = color.RGBA{0x0b, 0x6e, 0x99, 0xff}
	theirColor = color.RGBA{0x8a, 0x6d, 0x3b, 0xff}
	paleColor  = color.RGBA{0xaa, 0xaa, 0xaa, 0xff}
	failColor  = color.RGBA{0xd0, 0x1c, 0x1c, 0xff}
)

const panelColumns = 3

// plots draws all plots for which there are figures.
func plots(dir string, r *Results) error {
	if all := panels(r); len(all) > 0 {
		rows := (len(all) + panelColumns - 1) / panelColumns
		err := tiles(filepath.Join(dir, "takeover.svg"), all, panelColumns, 18*vg.Centimeter, vg.Length(rows)*3.2*vg.Centimeter)
		if err != nil {
			return err
		}
	}
	var all []*plot.Plot
	for _, s := range []struct {
		what   string
		points []Point
	}{{"sockets that are taken over", r.Takeovers}, {"idle connections that move", r.Moves}} {
		if p := scalingPlot(s.what, s.points); p != nil {
			all = append(all, p)
		}
	}
	if len(all) == 0 {
		return nil
	}
	return tiles(filepath.Join(dir, "scaling.svg"), all, len(all), 18*vg.Centimeter, 7*vg.Centimeter)
}

// newPlot is an empty plot in the style of all.
func newPlot(title string, size vg.Length) *plot.Plot {
	p := plot.New()
	p.Title.Text = title
	sans := font.Font{Typeface: "Liberation", Variant: "Sans"}
	for _, s := range []*font.Font{
		&p.Title.TextStyle.Font, &p.X.Label.TextStyle.Font, &p.Y.Label.TextStyle.Font,
		&p.X.Tick.Label.Font, &p.Y.Tick.Label.Font,
	} {
		*s = sans
		s.Size = size
	}
	p.Title.TextStyle.Font.Size = size + 1
	p.Title.Padding = 2
	return p
}

// tiles draws plots side by side, in rows, into a file.
func tiles(path string, all []*plot.Plot, columns int, width, height vg.Length) error {
	rows := (len(all) + columns - 1) / columns
	grid := make([][]*plot.Plot, rows)
	for i := range grid {
		grid[i] = make([]*plot.Plot, columns)
		copy(grid[i], all[i*columns:min((i+1)*columns, len(all))])
	}
	svg := vgsvg.New(width, height)
	dc := draw.New(svg)
	dc.SetColor(color.White) // also where pages are dark
	dc.Fill(dc.Rectangle.Path())
	t := draw.Tiles{Rows: rows, Cols: columns, PadX: 6, PadY: 6, PadTop: 4, PadBottom: 4, PadLeft: 4, PadRight: 8}
	for i, row := range plot.Align(grid, t, dc) {
		for j, c := range row {
			if grid[i][j] != nil {
				grid[i][j].Draw(c)
			}
		}
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := svg.WriteTo(f); err != nil {
		return err
	}
	return f.Close()
}

// panels are the timelines of servers and proxies, all on the same scale.
func panels(r *Results) (all []*plot.Plot) {
	longest := time.Millisecond
	for _, t := range r.Timelines {
		for _, s := range t.Slots {
			longest = max(longest, s.Max)
		}
	}
	for _, t := range r.Timelines {
		c := r.contender(t.Contender)
		if c == nil || c.Group == Pythons || len(t.Slots) == 0 {
			continue
		}
		all = append(all, panel(r, c, t, longest))
	}
	for i, p := range all {
		if i%panelColumns == 0 {
			p.Y.Label.Text = "ms"
		}
		if i >= len(all)-panelColumns {
			p.X.Label.Text = "ms from the trigger"
		}
	}
	return all
}

func panel(r *Results, c *Contender, t Timeline, longest time.Duration) *plot.Plot {
	failures, anew := failed.figure(r, c.Name, t.Load), reconnects.figure(r, c.Name, t.Load)
	p := newPlot(fmt.Sprintf("%s\n%s failed, %s reconnects", short(c.Title), digits(failures.Median), digits(anew.Median)), 6)
	p.Title.TextStyle.Font.Size = 7
	p.X.Min, p.X.Max = millis(t.Slots[0].From), millis(t.Slots[len(t.Slots)-1].From)
	p.X.Tick.Marker = hundreds{}
	p.X.Padding, p.Y.Padding = 2, 2
	p.Y.Min, p.Y.Max = .05, 3*millis(longest)
	p.Y.Scale = plot.LogScale{}
	p.Y.Tick.Marker = decades{}
	var median, most, crosses plotter.XYs
	for _, s := range t.Slots {
		x := millis(s.From)
		if s.Count > 0 {
			median = append(median, plotter.XY{X: x, Y: max(millis(s.P50), p.Y.Min)})
			most = append(most, plotter.XY{X: x, Y: max(millis(s.Max), p.Y.Min)})
		}
		if s.Failed > 0 {
			crosses = append(crosses, plotter.XY{X: x, Y: 2 * millis(longest)})
		}
	}
	main := theirColor
	if c.Ours {
		main = ourColor
	}
	addLine(p, plotter.XYs{{X: 0, Y: p.Y.Min}, {X: 0, Y: p.Y.Max}}, paleColor, .5)
	addLine(p, median, paleColor, 1)
	addLine(p, most, main, 1)
	addCrosses(p, crosses, failColor)
	// Panels with and without crosses are equally high.
	addCrosses(p, plotter.XYs{{X: 0, Y: 2 * millis(longest)}}, color.Transparent)
	return p
}

func addCrosses(p *plot.Plot, at plotter.XYs, c color.Color) {
	if s, err := plotter.NewScatter(at); err == nil && len(at) > 0 {
		s.GlyphStyle = draw.GlyphStyle{Color: c, Radius: 2, Shape: draw.CrossGlyph{}}
		p.Add(s)
	}
}

func addLine(p *plot.Plot, points plotter.XYs, c color.Color, width vg.Length) {
	if l, err := plotter.NewLine(points); err == nil && len(points) > 0 {
		l.LineStyle.Color, l.LineStyle.Width = c, width
		p.Add(l)
	}
}

func millis(d time.Duration) float64 { return float64(d) / 1e6 }

// decades are ticks at powers of ten.
type decades struct{}

func (decades) Ticks(least, most float64) (all []plot.Tick) {
	for e := math.Ceil(math.Log10(least)); e <= math.Log10(most); e++ {
		v := math.Pow(10, e)
		all = append(all, plot.Tick{Value: v, Label: fmt.Sprintf("%g", v)})
	}
	return all
}

// hundreds are ticks at multiples of 200.
type hundreds struct{}

func (hundreds) Ticks(least, most float64) (all []plot.Tick) {
	for v := 200 * math.Ceil(least/200); v <= most; v += 200 {
		all = append(all, plot.Tick{Value: v, Label: fmt.Sprintf("%.0f", v+0)})
	}
	return all
}

// short is a title that fits above a panel.
func short(title string) string {
	title = strings.Replace(title, "handoverd -- a program with", "-- CMD with", 1)
	return strings.Replace(title, "idle-close-on-response", "idle-close", 1)
}

// scalingPlot shows medians with the least and the greatest, and the line
// through all. It is nil if there are too few points for one.
func scalingPlot(what string, points []Point) *plot.Plot {
	f, ok := fit(points)
	if !ok {
		return nil
	}
	p := newPlot(fmt.Sprintf("%s each, R² = %.4f", duration(f.Slope), f.R2), 8)
	p.X.Label.Text, p.Y.Label.Text = what, "ms"
	var medians bars
	largest := 0.
	for _, x := range points {
		s := spread(x.Times)
		if s.N == 0 {
			continue
		}
		medians.XYs = append(medians.XYs, plotter.XY{X: float64(x.Size), Y: s.Median / 1e6})
		medians.YErrors = append(medians.YErrors, struct{ Low, High float64 }{(s.Median - s.Min) / 1e6, (s.Max - s.Median) / 1e6})
		largest = max(largest, float64(x.Size))
	}
	p.X.Min, p.Y.Min = 0, 0
	addLine(p, plotter.XYs{{X: 0, Y: f.Intercept / 1e6}, {X: largest, Y: (f.Intercept + f.Slope*largest) / 1e6}}, paleColor, 1)
	if s, err := plotter.NewScatter(medians.XYs); err == nil {
		s.GlyphStyle = draw.GlyphStyle{Color: ourColor, Radius: 2.5, Shape: draw.CircleGlyph{}}
		p.Add(s)
	}
	if e, err := plotter.NewYErrorBars(medians); err == nil {
		e.LineStyle.Color = ourColor
		p.Add(e)
	}
	return p
}

// bars are points with their ranges.
type bars struct {
	plotter.XYs
	plotter.YErrors
}
