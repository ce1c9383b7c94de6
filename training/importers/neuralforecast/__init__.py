"""Folders that `NeuralForecast.save` wrote: their recurrent models become forecast models."""
