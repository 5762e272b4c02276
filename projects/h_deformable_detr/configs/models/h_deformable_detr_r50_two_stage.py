from .h_deformable_detr_r50 import model

model.with_box_refine = True
model.as_two_stage = True
